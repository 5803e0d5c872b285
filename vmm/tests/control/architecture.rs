//! What ARCHITECTURE.md says of the runtime.

use std::fs;
use std::path::{Path, PathBuf};

fn sources(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

#[test]
fn the_control_plane_alone_is_async() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let mut files = Vec::new();
    for part in ["vmm/src", "memory/src", "devices/src"] {
        sources(&root.join(part), &mut files);
    }
    assert!(files.len() > 100);
    for file in files {
        let text = fs::read_to_string(&file).unwrap();
        let inside = file.starts_with(root.join("vmm/src/control"));
        let words = ["tokio::", "hyper::", "async fn", "async move", ".await"];
        let word = words.iter().find(|word| text.contains(**word));
        assert!(inside || word.is_none(), "{} has {word:?}", file.display());
        // And within it, whatever runs on other threads.
        let threads =
            ["desk.rs", "movers.rs", "jobs.rs", "metrics.rs", "translate.rs", "client.rs"];
        if threads.iter().any(|name| inside && file.ends_with(name)) {
            assert_eq!(word, None, "{}", file.display());
        }
    }
}
