//! Tests of [`super`].

use proptest::prelude::*;

use super::*;

fn requests() -> impl Strategy<Value = Request> {
    let range =
        (any::<u64>(), any::<u64>()).prop_map(|(base, size)| Range { base: Hex(base), size });
    let to = prop_oneof![Just(To::Home), any::<u8>().prop_map(To::Pool)];
    let flag = prop_oneof![
        Just(SelectFlag::System),
        Just(SelectFlag::DevicePrivate),
        Just(SelectFlag::DevicePublic),
    ];
    let migrate = (
        prop::collection::vec(range.clone(), 0..4),
        to,
        prop::option::of(prop::collection::vec(flag, 0..4)),
        any::<Option<u8>>(),
        any::<Option<u64>>(),
        any::<bool>(),
    )
        .prop_map(|(ranges, to, select, from_pool, limit, detach)| {
            Request::Migrate(Migrate { ranges, to, select, from_pool, limit, detach })
        });
    let policy = prop::sample::select(neap_memory::policy::PolicyName::ALL.to_vec());
    prop_oneof![
        any::<bool>().prop_map(|verify| Request::Status { verify }),
        (any::<bool>(), any::<u64>())
            .prop_map(|(verify, from)| Request::Residency { verify, from: Hex(from) }),
        migrate,
        any::<(u8, bool)>()
            .prop_map(|(region, detach)| Request::Evacuate(Evacuate { region, detach })),
        Just(Request::Jobs {}),
        any::<u64>().prop_map(|job| Request::Job { job }),
        any::<u64>().prop_map(|job| Request::Cancel { job }),
        prop::option::of(policy).prop_map(|set| Request::Policy { set: set.map(PolicyWord) }),
        Just(Request::Metrics {}),
        Just(Request::Pause {}),
        Just(Request::Resume {}),
        range.prop_map(|range| Request::Pin { range }),
        any::<u64>().prop_map(|pin| Request::Unpin { pin }),
        any::<u8>().prop_map(|region| Request::Unplug { region }),
        (any::<u8>(), any::<Option<u64>>(), any::<Option<u32>>()).prop_map(
            |(region, pool, node)| {
                let backing = node.map(|node| BackingWord(neap_memory::Backing::Node(node)));
                Request::Plug(Plug { region, pool, backing })
            }
        ),
        any::<u64>().prop_map(|address| Request::FailPage { address: Hex(address) }),
    ]
}

proptest! {
    #[test]
    fn requests_are_read_as_they_are_written(id in any::<u64>(), request in requests()) {
        let line = request_line(id, &request);
        prop_assert_eq!(line.iter().filter(|byte| **byte == b'\n').count(), 1);
        prop_assert_eq!(parse(line.trim_ascii_end()), Ok((id, request)));
    }

    #[test]
    fn no_bytes_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let _ = parse(&bytes);
    }

    #[test]
    fn no_damage_to_a_request_panics(
        request in requests(),
        cut in any::<prop::sample::Index>(),
        byte in any::<u8>(),
    ) {
        let mut line = request_line(1, &request);
        let at = cut.index(line.len());
        let _ = parse(&line[..at]);
        line[at] = byte;
        let _ = parse(&line);
    }
}

#[track_caller]
fn refused(line: &str, id: Option<u64>, parts: &[&str]) {
    let (got, error) = parse(line.as_bytes()).unwrap_err();
    assert_eq!((got, error.kind), (id, ErrorKind::Malformed), "{error}");
    for part in parts {
        assert!(error.message.contains(part), "no {part:?} in {:?}", error.message);
    }
}

#[test]
fn mistakes_say_what_is_wrong_and_keep_the_id() {
    refused("", None, &["no JSON"]);
    refused("{\"id\":1,\"request\":\"sta", None, &["no JSON", "EOF"]);
    refused("[1]", None, &["object"]);
    refused(&"[".repeat(MAX_LINE), None, &["recursion"]);
    refused("{\"request\":\"status\"}", None, &["\"id\" is missing"]);
    refused("{\"id\":-1,\"request\":\"status\"}", None, &["-1", "whole number"]);
    refused("{\"id\":3}", Some(3), &["\"request\""]);
    refused("{\"id\":3,\"request\":\"fly\"}", Some(3), &["fly", "migrate"]);
    refused("{\"id\":3,\"request\":\"status\",\"colour\":1}", Some(3), &["colour"]);
    refused("{\"id\":3,\"request\":\"migrate\"}", Some(3), &["\"to\""]);
    refused("{\"id\":3,\"request\":\"migrate\",\"to\":\"moon\"}", Some(3), &["moon", "pool:N"]);
    refused("{\"id\":3,\"request\":\"migrate\",\"to\":\"pool:256\"}", Some(3), &["pool:256"]);
    refused(
        "{\"id\":3,\"request\":\"migrate\",\"to\":\"home\",\"limits\":2}",
        Some(3),
        &["limits"],
    );
    refused(
        "{\"id\":3,\"request\":\"pin\",\"range\":{\"base\":\"0xg\",\"size\":1}}",
        Some(3),
        &["0xg"],
    );
    refused("{\"id\":3,\"request\":\"evacuate\",\"region\":300}", Some(3), &["300"]);
}

#[test]
fn addresses_are_numbers_or_texts() {
    for base in ["4294967296", "\"0x100000000\"", "\"4G\""] {
        let line = format!(
            "{{\"id\":1,\"request\":\"pin\",\"range\":{{\"base\":{base},\"size\":\"2M\"}}}}"
        );
        let range = Range { base: Hex(1 << 32), size: 2 << 20 };
        assert_eq!(parse(line.as_bytes()), Ok((1, Request::Pin { range })));
    }
    assert_eq!(serde_json::to_string(&Hex(u64::MAX)).unwrap(), "\"0xffffffffffffffff\"");
}

#[test]
fn messages_look_as_documented() {
    let moved = Amount { granules: 16, bytes: 32 << 20 };
    let progress = Body::Progress(Progress { done: 16, total: 32, moved });
    for (id, body, text) in [
        (
            Some(7),
            progress,
            r#"{"id":7,"progress":{"done":16,"total":32,"moved":{"granules":16,"bytes":33554432}}}"#,
        ),
        (
            Some(7),
            Body::Ok(Answer::Lifecycle(Lifecycle { state: State::Paused })),
            r#"{"id":7,"ok":{"state":"paused"}}"#,
        ),
        (
            None,
            Body::Error(Error::new(ErrorKind::TooLong, "long")),
            r#"{"id":null,"error":{"kind":"too-long","message":"long"}}"#,
        ),
    ] {
        let line = message_line(&Message { id, body });
        assert_eq!(String::from_utf8(line.clone()).unwrap(), format!("{text}\n"));
        let read: Message<Value> = serde_json::from_slice(&line).unwrap();
        assert_eq!(read.id, id);
    }
}
