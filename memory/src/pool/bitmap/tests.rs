use proptest::prelude::*;

use super::*;

/// Sizes on both sides of where words, and levels, begin.
const SIZES: [u32; 13] = [0, 1, 2, 63, 64, 65, 127, 128, 4095, 4096, 4097, 10_000, 262_145];

#[test]
fn a_new_bitmap_is_clear_up_to_its_end() {
    for size in SIZES {
        let bitmap = Bitmap::new(size);
        assert_eq!(bitmap.clear_from(0, u32::MAX), size);
        assert_eq!(bitmap.next_clear(0), (size > 0).then_some(0));
        assert_eq!(bitmap.next_clear(size), None);
        assert!(bitmap.is_set(size));
        if let Some(last) = size.checked_sub(1) {
            assert_eq!(bitmap.next_clear(last), Some(last));
        }
    }
}

#[test]
fn a_full_bitmap_has_nothing_clear_and_one_hole_is_found_from_anywhere() {
    for size in SIZES.into_iter().filter(|size| *size > 0) {
        let mut bitmap = Bitmap::new(size);
        bitmap.set_range(0, size);
        assert_eq!(bitmap.next_clear(0), None);
        for hole in [0, size / 3, size / 2, size - 1] {
            bitmap.clear(hole);
            for from in [0, hole / 2, hole] {
                assert_eq!(bitmap.next_clear(from), Some(hole), "{size} bits");
            }
            assert_eq!(bitmap.next_clear(hole + 1), None);
            bitmap.set(hole);
            assert_eq!(bitmap.next_clear(0), None);
        }
    }
}

#[test]
fn five_levels_are_enough_for_a_tebibyte_of_base_pages() {
    let mut bitmap = Bitmap::new(1 << 28);
    assert_eq!(bitmap.levels.len(), 5);
    bitmap.set_range(0, (1 << 28) - 1);
    assert_eq!(bitmap.next_clear(0), Some((1 << 28) - 1));
    assert_eq!(bitmap.bytes() / (1 << 20), 32);
}

/// What a test does to a bitmap; numbers are taken modulo its size.
#[derive(Clone, Copy, Debug)]
enum Step {
    Set(u32),
    Clear(u32),
    SetRange(u32, u32),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        any::<u32>().prop_map(Step::Set),
        any::<u32>().prop_map(Step::Clear),
        (any::<u32>(), any::<u32>()).prop_map(|(from, count)| Step::SetRange(from, count)),
    ];
    prop::collection::vec(step, 1..60)
}

proptest! {
    #[test]
    fn a_bitmap_is_a_list_of_booleans(
        size in prop_oneof![1u32..300, 4000u32..4400],
        steps in steps(),
        from in any::<u32>(),
        limit in any::<u32>(),
    ) {
        let mut bitmap = Bitmap::new(size);
        let mut model = vec![false; size as usize];
        let from = from % (size + 1);
        let limit = limit % (size + 10);
        for step in steps {
            match step {
                Step::Set(bit) => {
                    bitmap.set(bit % size);
                    model[(bit % size) as usize] = true;
                }
                Step::Clear(bit) => {
                    bitmap.clear(bit % size);
                    model[(bit % size) as usize] = false;
                }
                Step::SetRange(first, count) => {
                    let first = first % size;
                    let count = count % (size - first + 1);
                    bitmap.set_range(first, count);
                    model[first as usize..(first + count) as usize].fill(true);
                }
            }
            let rest = &model[from as usize..];
            let next = rest.iter().position(|set| !set).map(|n| from + n as u32);
            prop_assert_eq!(bitmap.next_clear(from), next);
            let run = rest.iter().take_while(|set| !**set).count() as u32;
            prop_assert_eq!(bitmap.clear_from(from, limit), run.min(limit));
            let word = from / 64 * 64;
            let before = model[..word as usize].iter().rev().take(64);
            let before = before.take_while(|set| !**set).count() as u32;
            prop_assert_eq!(bitmap.clear_before(word), before);
        }
        for (bit, set) in model.iter().enumerate() {
            prop_assert_eq!(bitmap.is_set(bit as u32), *set);
        }
    }
}
