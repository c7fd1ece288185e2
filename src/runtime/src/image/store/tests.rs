//! The store on a directory of its own.

use super::*;

fn add(store: &Arc<ImageStore>, id: &[u8], tag: &str, layers: &[&[u8]]) -> Arc<Image> {
    let layers: Vec<Digest> = layers.iter().map(|l| Digest::of(l)).collect();
    for &layer in &layers {
        let staging = store.staging().unwrap();
        store
            .commit_layer(&staging, layer, Unpacked { bytes: 10, inodes: 1, ..Unpacked::default() })
            .unwrap();
    }
    let reference = ImageRef::parse(tag).unwrap();
    let names = (reference.repo_tag(), reference.repo_digest(Digest::of(id)));
    store.put(Digest::of(id), names, ImageConfig::default(), 5, layers).unwrap()
}

#[test]
fn images_survive_a_restart_share_layers_and_leave_nothing() {
    let root = tempfile::tempdir().unwrap();
    let store = ImageStore::open(root.path()).unwrap();
    let a = add(&store, b"a", "a.io/a:1", &[b"base", b"x"]);
    add(&store, b"b", "a.io/b:1", &[b"base"]);
    assert_eq!((a.size, store.usage()), (25, Usage { bytes: 20, inodes: 2 }));
    std::fs::create_dir(root.path().join("layers/torn")).unwrap();
    drop(store);
    let store = ImageStore::open(root.path()).unwrap();
    assert!(!root.path().join("layers/torn").exists());
    for name in ["a.io/a:1", &a.id.to_string(), &a.id.hex(), &a.id.hex()[..12], &a.repo_digests[0]] {
        assert_eq!(store.resolve(name).as_deref(), Some(&*a), "{name}");
    }
    assert!(store.resolve("a.io/a:2").is_none() && store.resolve("").is_none());
    let pin = store.pin(&a.layers);
    assert!(store.remove("a.io/a:1").unwrap() && !store.remove("a.io/a:1").unwrap());
    assert!(a.layer_dirs[1].exists(), "pinned");
    drop(pin);
    store.collect().unwrap();
    assert!(!a.layer_dirs[1].exists() && a.layer_dirs[0].exists());
    assert!(store.remove("a.io/b:1").unwrap());
    assert_eq!(store.usage(), Usage { bytes: 0, inodes: 0 });
    assert_eq!(std::fs::read_dir(root.path().join("layers")).unwrap().count(), 0);
    let mode = std::fs::metadata(root.path()).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o700);
}

#[test]
fn a_tag_moves_and_the_old_image_keeps_its_digest() {
    let root = tempfile::tempdir().unwrap();
    let store = ImageStore::open(root.path()).unwrap();
    let old = add(&store, b"old", "a.io/a:1", &[b"l"]);
    let new = add(&store, b"new", "a.io/a:1", &[b"l"]);
    assert_eq!(store.resolve("a.io/a:1").unwrap().id, new.id);
    assert!(store.resolve(&old.repo_digests[0]).unwrap().repo_tags.is_empty());
}
