use proptest::collection::vec;
use proptest::prelude::*;

use super::*;

fn os_string() -> impl Strategy<Value = OsString> {
    vec(any::<u8>(), 0..40).prop_map(OsString::from_vec)
}

fn window() -> impl Strategy<Value = Window> {
    any::<[u16; 4]>().prop_map(|[rows, columns, width, height]| Window {
        rows,
        columns,
        width,
        height,
    })
}

fn stream() -> impl Strategy<Value = Stream> {
    prop_oneof![Just(Stream::Stdin), Just(Stream::Stdout), Just(Stream::Stderr)]
}

fn notice() -> impl Strategy<Value = Notice> {
    (0..4u8).prop_map(|code| Notice::from_code(code).unwrap())
}

fn start() -> impl Strategy<Value = Start> {
    (
        os_string(),
        vec(os_string(), 0..5),
        vec((os_string(), os_string()), 0..5),
        os_string(),
        any::<bool>(),
        proptest::option::of(window()),
        any::<bool>(),
        vec(os_string(), 0..3),
    )
        .prop_map(
            |(
                program,
                arguments,
                environment,
                folder,
                share,
                terminal,
                stderr_on_terminal,
                modules,
            )| {
                Start {
                    program,
                    arguments,
                    environment,
                    folder,
                    share,
                    terminal,
                    stderr_on_terminal,
                    modules,
                }
            },
        )
}

fn frame() -> impl Strategy<Value = Frame> {
    prop_oneof![
        any::<u32>().prop_map(Frame::Hello),
        start().prop_map(Frame::Start),
        (stream(), vec(any::<u8>(), 0..200)).prop_map(|(s, bytes)| Frame::Data(s, bytes)),
        stream().prop_map(Frame::End),
        stream().prop_map(Frame::Closed),
        (stream(), any::<u32>()).prop_map(|(s, n)| Frame::Credit(s, n)),
        window().prop_map(Frame::Resize),
        notice().prop_map(Frame::Signal),
        Just(Frame::Beat),
        any::<u8>().prop_map(Frame::Exit),
        ".{0,40}".prop_map(Frame::Failed),
    ]
}

fn decode_all(pieces: &[&[u8]]) -> Result<Vec<Frame>, WireError> {
    let mut decoder = Decoder::default();
    let mut frames = Vec::new();
    for piece in pieces {
        decoder.push(piece);
        while let Some(frame) = decoder.next_frame()? {
            frames.push(frame);
        }
    }
    Ok(frames)
}

proptest! {
    #[test]
    fn frames_survive_any_cutting(frames in vec(frame(), 0..8), piece in 1..50usize) {
        let bytes: Vec<u8> = frames.iter().flat_map(Frame::encode).collect();
        let pieces: Vec<&[u8]> = bytes.chunks(piece).collect();
        prop_assert_eq!(decode_all(&pieces), Ok(frames));
    }

    #[test]
    fn no_bytes_panic(pieces in vec(vec(any::<u8>(), 0..60), 0..8)) {
        let pieces: Vec<&[u8]> = pieces.iter().map(Vec::as_slice).collect();
        let _ = decode_all(&pieces);
    }

    /// Small kinds and lengths reach the payloads, which random bytes do not.
    #[test]
    fn no_payload_panics(kind in 0..14u8, payload in vec(prop_oneof![0..4u8, any::<u8>()], 0..80)) {
        let mut bytes = vec![kind];
        bytes.extend((payload.len() as u32).to_le_bytes());
        bytes.extend(&payload);
        match decode_all(&[&bytes]) {
            Ok(frames) => prop_assert_eq!(frames.len(), 1),
            Err(error) => prop_assert!(!error.to_string().is_empty()),
        }
    }

    #[test]
    fn a_frame_cut_short_is_no_frame(frame in frame()) {
        let bytes = frame.encode();
        prop_assert_eq!(decode_all(&[&bytes[..bytes.len() - 1]]), Ok(vec![]));
    }
}

#[test]
fn lengths_are_bounded_before_the_payload_comes() {
    let mut bytes = vec![3];
    bytes.extend((MAX_PAYLOAD as u32 + 1).to_le_bytes());
    assert_eq!(decode_all(&[&bytes]), Err(WireError::TooLong(MAX_PAYLOAD + 1)));
}

#[test]
fn payloads_that_are_too_long_for_their_kind_are_refused() {
    assert_eq!(decode_all(&[&[9, 2, 0, 0, 0, 0, 0]]), Err(WireError::Payload(9)));
    assert_eq!(decode_all(&[&[4, 1, 0, 0, 0, 3]]), Err(WireError::Payload(4)));
    assert_eq!(decode_all(&[&[77, 0, 0, 0, 0]]), Err(WireError::Kind(77)));
}

#[test]
fn a_count_that_lies_allocates_nothing() {
    let mut payload = Vec::new();
    Start::default().encode(&mut payload);
    let counts = payload.len() - 8;
    payload[counts..counts + 4].copy_from_slice(&u32::MAX.to_le_bytes());
    let mut bytes = vec![2];
    bytes.extend((payload.len() as u32).to_le_bytes());
    bytes.extend(&payload);
    assert_eq!(decode_all(&[&bytes]), Err(WireError::Payload(2)));
}
