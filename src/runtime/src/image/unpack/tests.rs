//! Honest and hostile archives against a real directory. As root: owners and devices are made.

use super::*;
use rstest::rstest;
use std::io::Write;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::Path;

struct Archive(Vec<u8>);

impl Archive {
    fn new() -> Self {
        Archive(Vec::new())
    }

    fn raw(
        mut self,
        kind: u8,
        path: &[u8],
        link: &[u8],
        data: &[u8],
        edit: impl FnOnce(&mut tar::Header),
    ) -> Self {
        let mut header = tar::Header::new_ustar();
        header.as_mut_bytes()[..path.len()].copy_from_slice(path);
        header.as_mut_bytes()[157..157 + link.len()].copy_from_slice(link);
        header.as_mut_bytes()[156] = kind;
        header.set_mode(if kind == b'5' { 0o755 } else { 0o644 });
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(1_000_000_000);
        header.set_size(data.len() as u64);
        edit(&mut header);
        header.set_cksum();
        self.0.extend_from_slice(header.as_bytes());
        self.0.extend_from_slice(data);
        self.0.resize(self.0.len().next_multiple_of(512), 0);
        self
    }

    fn file(self, path: &str, data: &str) -> Self {
        self.raw(b'0', path.as_bytes(), b"", data.as_bytes(), |_| {})
    }
    fn dir(self, path: &str) -> Self {
        self.raw(b'5', path.as_bytes(), b"", b"", |_| {})
    }
    fn symlink(self, path: &str, to: &str) -> Self {
        self.raw(b'2', path.as_bytes(), to.as_bytes(), b"", |_| {})
    }
    fn hard(self, path: &str, to: &str) -> Self {
        self.raw(b'1', path.as_bytes(), to.as_bytes(), b"", |_| {})
    }
    fn pax(self, records: &[(&str, &[u8])]) -> Self {
        let mut data = Vec::new();
        for (key, value) in records {
            let body = 3 + key.len() + value.len();
            let mut length = body + 1;
            while length.to_string().len() + body != length {
                length += 1;
            }
            data.extend_from_slice(format!("{length} {key}=").as_bytes());
            data.extend_from_slice(value);
            data.push(b'\n');
        }
        self.raw(b'x', b"pax", b"", &data, |_| {})
    }
    fn end(mut self) -> Vec<u8> {
        self.0.resize(self.0.len() + 1024, 0);
        self.0
    }
}

fn run(blob: &[u8], root: &Path, limits: Limits) -> Result<LayerDone, UnpackError> {
    run_as(blob, (blob.len() as u64, 1000), root, limits)
}

/// A blob of which the manifest gives `size`, and which comes in chunks of `chunk` bytes.
fn run_as(
    blob: &[u8],
    (size, chunk): (u64, usize),
    root: &Path,
    limits: Limits,
) -> Result<LayerDone, UnpackError> {
    let (sender, receiver) = mpsc::channel(1);
    let fd = OwnedFd::from(std::fs::File::open(root).unwrap());
    std::thread::scope(|scope| {
        scope.spawn(move || {
            for chunk in blob.chunks(chunk) {
                if sender.blocking_send(Bytes::copy_from_slice(chunk)).is_err() {
                    break;
                }
            }
        });
        unpack(receiver, size, fd, limits)
    })
}

fn good(archive: Archive) -> tempfile::TempDir {
    let root = tempfile::tempdir().unwrap();
    run(&archive.end(), root.path(), Limits::default()).unwrap();
    root
}

#[test]
fn files_links_modes_owners_and_times_come_out() {
    let root = good(
        Archive::new()
            .raw(b'5', b"./", b"", b"", |h| h.set_mode(0o711))
            .dir("etc/")
            .file("etc/a", "hello")
            .raw(b'0', b"bin/su", b"", b"x", |h| {
                h.set_mode(0o4755);
                h.set_uid(7);
                h.set_gid(8);
            })
            .symlink("s", "/etc/a")
            .hard("etc/b", "etc/a")
            .raw(b'3', b"null", b"", b"", |h| {
                h.set_device_major(1).unwrap();
                h.set_device_minor(3).unwrap();
            })
            .raw(b'6', b"pipe", b"", b"", |_| {}),
    );
    let at = |p: &str| root.path().join(p);
    assert_eq!(std::fs::read_to_string(at("etc/b")).unwrap(), "hello");
    assert_eq!(std::fs::metadata(at("etc/a")).unwrap().nlink(), 2);
    let su = std::fs::metadata(at("bin/su")).unwrap();
    assert_eq!((su.permissions().mode() & 0o7777, su.uid(), su.gid()), (0o4755, 7, 8));
    assert_eq!(std::fs::metadata(at("etc")).unwrap().mtime(), 1_000_000_000);
    assert_eq!(std::fs::metadata(root.path()).unwrap().permissions().mode() & 0o7777, 0o711);
    assert_eq!(std::fs::read_link(at("s")).unwrap(), Path::new("/etc/a"));
    assert_eq!(std::fs::symlink_metadata(at("null")).unwrap().rdev(), rustix::fs::makedev(1, 3));
    assert!(std::fs::symlink_metadata(at("pipe")).unwrap().file_type().is_fifo());
}

#[rstest]
fn compressed_layers_have_both_digests_however_they_come(
    #[values(true, false)] gzip: bool,
    #[values(1, 3, 1000)] chunk: usize,
) {
    let tar = Archive::new().file("a", "b").end();
    let blob = if gzip {
        // Two members: pigz and estargz make such blobs.
        let mut out = Vec::new();
        for part in [&tar[..700], &tar[700..]] {
            let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
            encoder.write_all(part).unwrap();
            out.extend(encoder.finish().unwrap());
        }
        out
    } else {
        zstd::encode_all(tar.as_slice(), 1).unwrap()
    };
    let root = tempfile::tempdir().unwrap();
    let size = blob.len() as u64;
    let done = run_as(&blob, (size, chunk), root.path(), Limits::default()).unwrap();
    assert_eq!((done.compressed, done.diff), (Digest::of(&blob), Digest::of(&tar)));
    assert_eq!(done.compressed_bytes, size);
    assert_eq!(std::fs::read_to_string(root.path().join("a")).unwrap(), "b");
}

#[test]
fn a_blob_longer_than_the_manifest_says_is_refused() {
    let root = tempfile::tempdir().unwrap();
    let mut blob = Archive::new().file("a", "x").end();
    let size = blob.len() as u64;
    blob.push(0);
    let error = run_as(&blob, (size, 100), root.path(), Limits::default()).unwrap_err();
    let UnpackError::Read(source) = error else { panic!("{error}") };
    assert_eq!(
        source.to_string(),
        format!("the blob is longer than the {size} bytes that the manifest gives")
    );
}

#[rstest]
#[case::dotdot(Archive::new().file("../x", "x"))]
#[case::dotdot_inside(Archive::new().file("a/../../x", "x"))]
#[case::empty_name(Archive::new().file("", "x"))]
#[case::nul_in_pax_path(Archive::new().pax(&[("path", b"a\0b")]).file("a", "x"))]
#[case::long_name(Archive::new().pax(&[("path", &[b'a'; 5000])]).file("a", "x"))]
#[case::long_component(Archive::new().pax(&[("path", &[b'a'; 256])]).file("a", "x"))]
#[case::deep(Archive::new().pax(&[("path", "a/".repeat(300).as_bytes())]).dir("a"))]
#[case::root_is_a_file(Archive::new().file("./", "x").symlink("/", "x"))]
#[case::link_loop_parent(Archive::new().symlink("a", "b").symlink("b", "a").file("a/x", "x"))]
#[case::dangling_link_parent(Archive::new().symlink("a", "nowhere").file("a/x", "x"))]
#[case::file_as_parent(Archive::new().file("a", "x").file("a/x", "x"))]
#[case::hard_link_outside(Archive::new().hard("a", "../../etc/passwd"))]
#[case::hard_link_absolute(Archive::new().hard("a", "/etc/passwd"))]
#[case::hard_link_missing(Archive::new().hard("a", "b"))]
#[case::hard_link_to_directory(Archive::new().dir("d").hard("a", "d"))]
#[case::hard_link_to_root(Archive::new().hard("a", "/"))]
#[case::hard_link_to_whiteout(Archive::new().file(".wh.w", "").hard("a", "w"))]
#[case::hard_link_to_device(Archive::new().raw(b'3', b"d", b"", b"", |h| { h.set_device_major(1).unwrap(); h.set_device_minor(3).unwrap(); }).hard("a", "d"))]
#[case::literal_whiteout(Archive::new().raw(b'3', b"w", b"", b"", |h| { h.set_device_major(0).unwrap(); h.set_device_minor(0).unwrap(); }))]
#[case::whiteout_of_nothing(Archive::new().file(".wh.", ""))]
#[case::whiteout_of_dot(Archive::new().file("a/.wh..", ""))]
#[case::whiteout_of_dotdot(Archive::new().file("a/.wh...", ""))]
#[case::whiteout_as_directory(Archive::new().file(".wh.a/x", ""))]
#[case::overlay_xattr(Archive::new().pax(&[("SCHILY.xattr.trusted.overlay.redirect", b"/etc")]).dir("a"))]
#[case::user_overlay_xattr(Archive::new().pax(&[("SCHILY.xattr.user.overlay.opaque", b"y")]).dir("a"))]
#[case::huge_xattr(Archive::new().pax(&[("SCHILY.xattr.user.a", &[b'a'; 70_000])]).file("a", "x"))]
#[case::uid_too_big(Archive::new().pax(&[("uid", b"4294967296")]).file("a", "x"))]
#[case::uid_minus_one(Archive::new().pax(&[("uid", b"4294967295")]).file("a", "x"))]
#[case::uid_negative(Archive::new().pax(&[("uid", b"-1")]).file("a", "x"))]
#[case::size_negative(Archive::new().pax(&[("size", b"-1")]).file("a", "x"))]
#[case::sparse_gnu(Archive::new().raw(b'S', b"a", b"", b"", |_| {}))]
#[case::sparse_pax(Archive::new().pax(&[("GNU.sparse.major", b"1")]).file("a", "x"))]
#[case::unknown_type(Archive::new().raw(b'Z', b"a", b"", b"", |_| {}))]
#[case::empty_symlink(Archive::new().symlink("a", ""))]
#[case::extension_then_end(Archive::new().pax(&[("path", b"a")]))]
#[case::pax_without_space(Archive::new().raw(b'x', b"p", b"", b"99999", |_| {}).file("a", "x"))]
#[case::pax_length_lies(Archive::new().raw(b'x', b"p", b"", b"99 a=b\n", |_| {}).file("a", "x"))]
#[case::long_name_bomb(Archive::new().raw(b'L', b"l", b"", b"", |h| h.set_size(1 << 32)).file("a", "x"))]
#[case::socket(Archive::new().raw(b's', b"a", b"", b"", |_| {}))]
#[case::hard_link_before_its_target(Archive::new().hard("a", "b").file("b", "x"))]
#[case::hard_link_to_another_layer(Archive::new().dir("usr").hard("usr/a", "usr/of-a-lower-layer"))]
#[case::hard_link_through_a_link_outside(Archive::new().symlink("d", "/etc").hard("a", "d/passwd"))]
#[case::whiteout_through_a_dangling_link(Archive::new().symlink("d", "nowhere").file("d/.wh.x", ""))]
#[case::uid_base_256_too_big(Archive::new().raw(b'0', b"a", b"", b"x", |h| { h.as_mut_bytes()[108..116].copy_from_slice(&[0x80, 0, 0, 1, 0, 0, 0, 0]); }))]
#[case::size_base_256_negative(Archive::new().raw(b'0', b"a", b"", b"x", |h| { h.as_mut_bytes()[124..136].fill(0xff); }))]
#[case::xattr_name_too_long(Archive::new().pax(&[(&format!("SCHILY.xattr.user.{}", "a".repeat(300)), b"x")]).file("a", "x"))]
#[case::metadata_bomb(Archive::new().raw(b'x', b"p", b"", b"", |h| h.set_size(1 << 30)).file("a", "x"))]
#[case::truncated(Archive::new().raw(b'0', b"a", b"", b"x", |h| h.set_size(1 << 20)))]
fn a_hostile_archive_is_refused_and_nothing_is_outside(#[case] archive: Archive) {
    let outer = tempfile::tempdir().unwrap();
    let root = outer.path().join("layer");
    std::fs::create_dir(&root).unwrap();
    run(&archive.end(), &root, Limits::default()).unwrap_err();
    assert_eq!(std::fs::read_dir(outer.path()).unwrap().count(), 1);
}

#[rstest]
#[case::absolute_name(Archive::new().file("/x", "in"))]
#[case::parent_links_to_host_root(Archive::new().symlink("a", "/").file("a/x", "in"))]
#[case::parent_links_up(Archive::new().symlink("a", "../../../..").file("a/x", "in"))]
#[case::chain(Archive::new().symlink("a", "b").symlink("b", "..").file("a/x", "in"))]
#[case::link_replaced_by_file(Archive::new().symlink("x", "/etc/passwd").file("x", "in"))]
#[case::directory_replaced_by_file(Archive::new().file("x/a/b", "old").file("x", "in"))]
#[case::duplicate(Archive::new().file("x", "old").file("x", "in"))]
#[case::hard_link_to_itself(Archive::new().file("x", "in").hard("x", "x"))]
#[case::parent_flips(Archive::new().file("a/y", "1").symlink("a", "/").file("a/x", "in"))]
#[case::gnu_long_name(Archive::new().raw(b'L', b"l", b"", b"x\0", |_| {}).file("other", "in"))]
#[case::global_header(Archive::new().raw(b'g', b"g", b"", b"13 comment=1\n", |_| {}).file("x", "in"))]
#[case::base_256_size(Archive::new().raw(b'0', b"x", b"", b"in", |h| { h.as_mut_bytes()[124..136].copy_from_slice(&[0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2]); }))]
#[case::hard_link_to_a_link(Archive::new().symlink("s", "/etc/passwd").hard("t", "s").file("x", "in"))]
#[case::hard_link_replaced(Archive::new().file("h", "other").hard("x", "h").file("x", "in"))]
#[case::link_then_directory(Archive::new().symlink("d", "/").dir("d").file("d/y", "1").file("x", "in"))]
#[case::not_utf8(Archive::new().file("x", "in").raw(b'0', b"\xff\xfe", b"", b"", |_| {}))]
#[case::host_labels(Archive::new().pax(&[("SCHILY.xattr.security.selinux", b"system_u"), ("SCHILY.xattr.trusted.x", b"y")]).file("x", "in"))]
#[case::xattr_on_a_link(Archive::new().pax(&[("SCHILY.xattr.user.a", b"y")]).symlink("s", "x").file("x", "in"))]
#[case::mtime_extreme(Archive::new().pax(&[("mtime", b"9223372036854775807.5")]).file("x", "in"))]
#[case::mtime_negative(Archive::new().pax(&[("mtime", b"-5")]).file("x", "in"))]
fn odd_but_harmless_archives_stay_inside(#[case] archive: Archive) {
    let root = good(archive);
    assert_eq!(std::fs::read_to_string(root.path().join("x")).unwrap(), "in");
    assert!(!std::fs::symlink_metadata(root.path().join("x")).unwrap().is_symlink());
}

fn opaque(path: &Path) -> bool {
    xattr::get(path, "trusted.overlay.opaque").unwrap().as_deref() == Some(b"y")
}

#[test]
fn whiteouts_become_overlay_ones_whatever_the_order() {
    let root = good(
        Archive::new()
            .file("d/.wh.gone", "")
            .file("o/kept", "1")
            .file("o/.wh..wh..opq", "")
            .file("f", "stays")
            .file(".wh.f", "")
            .file(".wh.r", "")
            .dir("r/")
            .dir("q/")
            .file(".wh.q", "")
            .file(".wh..wh.plnk", ""),
    );
    let at = |p: &str| root.path().join(p);
    let gone = std::fs::symlink_metadata(at("d/gone")).unwrap();
    assert!(gone.file_type().is_char_device() && gone.rdev() == 0);
    assert!(opaque(&at("o")) && at("o/kept").exists() && !at("o/.wh..wh..opq").exists());
    assert_eq!(std::fs::read_to_string(at("f")).unwrap(), "stays");
    assert!(opaque(&at("r")) && opaque(&at("q")));
    assert!(!at(".wh..wh.plnk").exists());
}

#[test]
fn capabilities_are_kept_and_host_labels_are_not() {
    let cap: &[u8] = &[1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let root = good(
        Archive::new()
            .pax(&[("SCHILY.xattr.security.capability", cap), ("SCHILY.xattr.security.ima", b"x")])
            .raw(b'0', b"ping", b"", b"x", |h| h.set_uid(5)),
    );
    let ping = root.path().join("ping");
    assert_eq!(xattr::get(&ping, "security.capability").unwrap().as_deref(), Some(cap));
    assert_eq!(xattr::list(&ping).unwrap().filter(|n| n == "security.ima").count(), 0);
}

#[test]
fn bombs_are_capped_in_bytes_entries_and_blob() {
    let root = tempfile::tempdir().unwrap();
    let limits = Limits { bytes: 4096, entries: 3, depth: 8 };
    let big = Archive::new().file("a", &"0".repeat(1 << 20)).end();
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    encoder.write_all(&big).unwrap();
    let bomb = encoder.finish().unwrap();
    assert!(matches!(run(&bomb, root.path(), limits), Err(UnpackError::TooMuch { what: "bytes", .. })));
    let many = Archive::new().file("a", "").file("b", "").file("c", "").file("d", "").end();
    assert!(matches!(run(&many, root.path(), limits), Err(UnpackError::TooMuch { what: "entries", .. })));
    let mut padded = Archive::new().file("a", "").end();
    padded.resize(10_000, 0);
    assert!(matches!(run(&padded, root.path(), limits), Err(UnpackError::TooMuch { what: "bytes", .. })));
}

#[test]
fn a_wrong_checksum_and_trailing_garbage_after_gzip_are_refused() {
    let root = tempfile::tempdir().unwrap();
    let mut tar = Archive::new().file("a", "x").end();
    tar[0] = b'b';
    run(&tar, root.path(), Limits::default()).unwrap_err();
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(&Archive::new().file("a", "x").end()).unwrap();
    let mut blob = encoder.finish().unwrap();
    blob.extend_from_slice(b"garbage!");
    run(&blob, root.path(), Limits::default()).unwrap_err();
}

/// Padding after the end of the archive is part of the diff, and is not an archive.
#[test]
fn what_follows_the_end_is_hashed_and_not_unpacked() {
    let root = tempfile::tempdir().unwrap();
    let mut tar = Archive::new().file("a", "x").end();
    tar.extend_from_slice(&Archive::new().file("b", "x").end());
    let done = run(&tar, root.path(), Limits::default()).unwrap();
    assert_eq!(done.diff, Digest::of(&tar));
    assert!(root.path().join("a").exists() && !root.path().join("b").exists());
}

#[test]
fn a_whiteout_of_the_root_makes_it_opaque_and_nothing_outside() {
    let outer = tempfile::tempdir().unwrap();
    let root = outer.path().join("layer");
    std::fs::create_dir(&root).unwrap();
    std::fs::write(outer.path().join("neighbour"), "x").unwrap();
    run(&Archive::new().file(".wh..wh..opq", "").file("a", "x").end(), &root, Limits::default()).unwrap();
    assert!(opaque(&root) && root.join("a").exists());
    assert_eq!(std::fs::read_dir(outer.path()).unwrap().count(), 2);
}

/// A window over 128 MiB would be the unpacker's memory, whatever the layer's size.
#[test]
fn a_zstd_window_that_is_too_large_is_refused() {
    let tar = Archive::new().file("a", "x").end();
    let mut encoder = zstd::stream::write::Encoder::new(Vec::new(), 1).unwrap();
    encoder.window_log(30).unwrap();
    encoder.include_contentsize(false).unwrap();
    encoder.write_all(&tar).unwrap();
    encoder.flush().unwrap();
    let blob = encoder.finish().unwrap();
    let root = tempfile::tempdir().unwrap();
    let error = run(&blob, root.path(), Limits::default()).unwrap_err();
    assert!(crate::image::pull::chain(&error).contains("too much memory"), "{error:?}");
}

/// Who is unpacked with set-id bits keeps them after chown, for they are set last.
#[test]
fn set_id_bits_survive_the_change_of_owner() {
    let root = good(Archive::new().raw(b'5', b"d/", b"", b"", |h| {
        h.set_mode(0o3777);
        h.set_gid(50);
    }));
    let meta = std::fs::metadata(root.path().join("d")).unwrap();
    assert_eq!((meta.permissions().mode() & 0o7777, meta.gid()), (0o3777, 50));
}

#[test]
fn directories_that_no_entry_names_are_told() {
    let root = tempfile::tempdir().unwrap();
    let archive = Archive::new().file("a/b/f", "x").file("c/f", "x").dir("c").dir("d").file("d/f", "x");
    let done = run(&archive.end(), root.path(), Limits::default()).unwrap();
    assert_eq!(done.unpacked.implicit, ["a", "a/b"].map(std::path::PathBuf::from));
}
