//! `/logs/`: the files below `/var/log`, read only. A path is opened beneath the directory by
//! `openat2` without following any link: what a pod leaves in its log directory leads nowhere else.

use axum::body::Body;
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse as _, Response};
use rustix::fs::{CWD, Dir, FileType, Mode, OFlags, ResolveFlags, fstat, openat, openat2};
use rustix::io::Errno;
use std::fmt::Write as _;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

/// What a path leads to.
enum Found {
    File(std::fs::File),
    /// The names in it, with a slash behind a directory's.
    Directory(Vec<String>),
}

fn open(root: &Path, path: &str) -> Result<Found, Errno> {
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let root = openat(CWD, root, flags | OFlags::DIRECTORY, Mode::empty())?;
    let path = if path.is_empty() { "." } else { path };
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    let fd: OwnedFd = openat2(&root, path, flags, Mode::empty(), resolve)?;
    match FileType::from_raw_mode(fstat(&fd)?.st_mode) {
        FileType::RegularFile => Ok(Found::File(fd.into())),
        FileType::Directory => {
            let mut names = Vec::new();
            for entry in Dir::new(fd)? {
                let entry = entry?;
                let name = entry.file_name().to_string_lossy().into_owned();
                if name != "." && name != ".." {
                    let slash = if entry.file_type() == FileType::Directory { "/" } else { "" };
                    names.push(format!("{name}{slash}"));
                }
            }
            names.sort();
            Ok(Found::Directory(names))
        }
        _ => Err(Errno::ACCESS),
    }
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&#34;")
}

/// Answers for the file or directory `path` below `root`.
pub(super) async fn answer(root: PathBuf, path: String) -> Response {
    let path = path.trim_matches('/').to_owned();
    let found = tokio::task::spawn_blocking(move || open(&root, &path)).await;
    match found {
        Ok(Ok(Found::File(file))) => {
            let stream = tokio_util::io::ReaderStream::new(tokio::fs::File::from_std(file));
            ([(CONTENT_TYPE, "text/plain; charset=utf-8")], Body::from_stream(stream)).into_response()
        }
        Ok(Ok(Found::Directory(names))) => {
            // As Go's file server lists.
            let mut page = String::from(
                "<!doctype html>\n<meta name=\"viewport\" content=\"width=device-width\">\n<pre>\n",
            );
            for name in names {
                let name = escaped(&name);
                let _ = writeln!(page, "<a href=\"{name}\">{name}</a>");
            }
            page.push_str("</pre>\n");
            ([(CONTENT_TYPE, "text/html; charset=utf-8")], page).into_response()
        }
        Ok(Err(Errno::NOENT | Errno::NOTDIR)) => {
            (StatusCode::NOT_FOUND, "404 page not found\n").into_response()
        }
        Ok(Err(Errno::ACCESS | Errno::PERM | Errno::LOOP | Errno::XDEV)) => {
            (StatusCode::FORBIDDEN, "403 Forbidden\n").into_response()
        }
        Ok(Err(error)) => {
            (StatusCode::INTERNAL_SERVER_ERROR, format!("Internal Error: {error}")).into_response()
        }
        Err(_) => {
            (StatusCode::INTERNAL_SERVER_ERROR, "Internal Error: a defect of the agent").into_response()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn get(root: &Path, path: &str) -> (StatusCode, String) {
        let response = answer(root.to_owned(), path.to_owned()).await;
        let status = response.status();
        let body = axum::body::to_bytes(response.into_body(), 1 << 20).await.unwrap();
        (status, String::from_utf8(body.to_vec()).unwrap())
    }

    #[tokio::test]
    async fn files_below_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("log");
        std::fs::create_dir_all(root.join("pods")).unwrap();
        std::fs::write(root.join("pods/a&b"), "hello\n").unwrap();
        std::fs::write(dir.path().join("secret"), "s").unwrap();
        std::os::unix::fs::symlink("../../secret", root.join("pods/link")).unwrap();
        std::os::unix::fs::symlink("/", root.join("pods/root")).unwrap();
        assert_eq!(get(&root, "/pods/a&b").await, (StatusCode::OK, "hello\n".to_owned()));
        let (status, page) = get(&root, "pods/").await;
        assert!(status == StatusCode::OK && page.contains("<a href=\"a&amp;b\">a&amp;b</a>"), "{page}");
        assert!(get(&root, "").await.1.contains("<a href=\"pods/\">"));
        for (path, status) in [
            ("pods/none", StatusCode::NOT_FOUND),
            ("pods/a&b/x", StatusCode::NOT_FOUND),
            ("pods/link", StatusCode::FORBIDDEN),
            ("pods/root/etc/passwd", StatusCode::FORBIDDEN),
            ("../secret", StatusCode::FORBIDDEN),
        ] {
            assert_eq!(get(&root, path).await.0, status, "{path}");
        }
    }
}
