//! Opens regular files of a sane size, and nothing else; names that stay in their folder; what a run directory is.
//!
//! A path that a user or a file names may be a FIFO, a device, a socket or a folder. To open or read
//! it could wait forever or fill the memory. Every reader of trine comes through here instead, and
//! gets an error that says what is there.
//!
//! ```
//! let folder = tempfile::tempdir()?;
//! std::fs::write(folder.path().join("notes.txt"), "two words")?;
//! assert_eq!(trine_files::read_text(&folder.path().join("notes.txt"), 100)?, "two words");
//!
//! let error = trine_files::read(&folder.path().join("notes.txt"), 8).unwrap_err();
//! assert_eq!(error.to_string(), "it has 9 bytes; at most 8 are read");
//! let error = trine_files::open(folder.path()).unwrap_err();
//! assert_eq!(error.to_string(), "it is a folder, not a regular file");
//! let error = trine_files::inside(folder.path(), "../secret").unwrap_err();
//! assert_eq!(error.to_string(), "\"../secret\" is not the name of a file in this folder");
//! # Ok::<(), std::io::Error>(())
//! ```

use std::fs::{self, File, FileType, OpenOptions};
use std::io::{Error, ErrorKind, Read, Result};
use std::path::{Component, Path, PathBuf};

/// The largest text that is read whole: configurations, indexes, tokenizers, metrics. 256 MiB.
pub const TEXT_BYTES_MAX: u64 = 256 << 20;

/// The configuration of a run, in its directory.
pub const RUN_CONFIG: &str = "config.toml";

/// The checkpoints of a run, in its directory; a link where they are elsewhere.
pub const RUN_CHECKPOINTS: &str = "checkpoints";

/// Whether a folder is the directory of a run: it has the configuration of one, and checkpoints or a place for them.
pub fn is_run(folder: &Path) -> bool {
    folder.join(RUN_CONFIG).is_file() && folder.join(RUN_CHECKPOINTS).exists()
}

/// Opens a regular file for reading, links followed. Never waits, whatever is there.
///
/// # Errors
/// The system's, or of kind [`ErrorKind::InvalidInput`] for anything but a regular file.
pub fn open(path: &Path) -> Result<File> {
    // Opening a device can have effects, so what is there is looked at before.
    regular(fs::metadata(path)?.file_type())?;
    let file = at_once(&mut OpenOptions::new()).read(true).open(path)?;
    // And again: between the two, a FIFO can have taken the file's place.
    regular(file.metadata()?.file_type())?;
    Ok(file)
}

/// The bytes of a regular file that has at most `bytes_max`.
///
/// # Errors
/// As [`open`]; or, of kind [`ErrorKind::FileTooLarge`], a larger file.
pub fn read(path: &Path, bytes_max: u64) -> Result<Vec<u8>> {
    let file = open(path)?;
    let found = file.metadata()?.len();
    let too_large = |found: String| {
        let why = format!("it has {found} bytes; at most {bytes_max} are read");
        Error::new(ErrorKind::FileTooLarge, why)
    };
    if found > bytes_max {
        return Err(too_large(found.to_string()));
    }
    let mut bytes = Vec::with_capacity(usize::try_from(found).unwrap_or(0));
    // Files of the system say that they are empty, and others grow while they are read.
    file.take(bytes_max.saturating_add(1)).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > bytes_max {
        return Err(too_large(format!("more than {bytes_max}")));
    }
    Ok(bytes)
}

/// The text of a regular file that has at most `bytes_max`, without the byte order mark that some editors put first.
///
/// # Errors
/// As [`read`]; or, of kind [`ErrorKind::InvalidData`], bytes that are not UTF-8.
pub fn read_text(path: &Path, bytes_max: u64) -> Result<String> {
    let text = String::from_utf8(read(path, bytes_max)?).map_err(|error| {
        let offset = error.utf8_error().valid_up_to();
        let why = format!("it is not UTF-8 text: byte {offset} begins no valid character");
        Error::new(ErrorKind::InvalidData, why)
    })?;
    Ok(without_mark(text))
}

/// A text without a byte order mark.
pub fn without_mark(mut text: String) -> String {
    if text.starts_with('\u{feff}') {
        text.drain(..'\u{feff}'.len_utf8());
    }
    text
}

/// The path of the file `name` in `folder`, where the name stands in a file that somebody else may
/// have written. The name is one component of a path, and if it is a link, its target lies in the
/// folder too. The file need not exist.
///
/// # Errors
/// Of kind [`ErrorKind::InvalidInput`], a name that leads elsewhere.
pub fn inside(folder: &Path, name: &str) -> Result<PathBuf> {
    let mut components = Path::new(name).components();
    let is_one = matches!(components.next(), Some(Component::Normal(first)) if first == name);
    if !is_one || components.next().is_some() {
        let why = format!("{name:?} is not the name of a file in this folder");
        return Err(Error::new(ErrorKind::InvalidInput, why));
    }
    let path = folder.join(name);
    // A link to nothing is named when it is opened.
    let target = path.is_symlink().then(|| path.canonicalize().ok()).flatten();
    if target
        .is_some_and(|target| !folder.canonicalize().is_ok_and(|home| target.starts_with(home)))
    {
        let why = format!("{name:?} is a link out of its folder; put the file itself there");
        return Err(Error::new(ErrorKind::InvalidInput, why));
    }
    Ok(path)
}

/// Opens or creates the file that a run locks. Never waits, and never truncates.
///
/// # Errors
/// As [`open`].
pub fn open_lock(path: &Path) -> Result<File> {
    if let Ok(found) = fs::metadata(path) {
        regular(found.file_type())?;
    }
    let file = at_once(OpenOptions::new().create(true).truncate(false)).write(true).open(path)?;
    regular(file.metadata()?.file_type())?;
    Ok(file)
}

/// Whether a path still leads to an open file: it may have been removed, or another put in its place.
#[cfg(unix)]
pub fn is_at(file: &File, path: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;
    let place = |found: fs::Metadata| (found.dev(), found.ino());
    let (open, there) = (file.metadata().map(place), fs::metadata(path).map(place));
    matches!((open, there), (Ok(open), Ok(there)) if open == there)
}

/// The same where files have no numbers: whether there is a file.
#[cfg(not(unix))]
pub fn is_at(_: &File, path: &Path) -> bool {
    path.is_file()
}

/// Opening does not wait for whoever holds the other end of a FIFO.
#[cfg(unix)]
fn at_once(options: &mut OpenOptions) -> &mut OpenOptions {
    use std::os::unix::fs::OpenOptionsExt;
    options.custom_flags(rustix::fs::OFlags::NONBLOCK.bits().cast_signed())
}

/// Other systems have no FIFOs among their files.
#[cfg(not(unix))]
fn at_once(options: &mut OpenOptions) -> &mut OpenOptions {
    options
}

fn regular(found: FileType) -> Result<()> {
    if found.is_file() {
        return Ok(());
    }
    let what = describe(found);
    Err(Error::new(ErrorKind::InvalidInput, format!("it is {what}, not a regular file")))
}

/// What a path that is no regular file is, for a message: "a folder", "a pipe".
pub fn describe(found: FileType) -> &'static str {
    if found.is_dir() { "a folder" } else { special(found) }
}

/// What a path that is neither a file nor a folder is.
#[cfg(unix)]
fn special(found: FileType) -> &'static str {
    use std::os::unix::fs::FileTypeExt;
    if found.is_fifo() {
        "a pipe"
    } else if found.is_socket() {
        "a socket"
    } else {
        "a device"
    }
}

/// As on Unix, where the system does not tell.
#[cfg(not(unix))]
fn special(_: FileType) -> &'static str {
    "something else"
}

#[cfg(test)]
#[cfg(unix)]
mod tests {
    use super::*;
    use rustix::fs::{CWD, FileType as Kind, Mode, mknodat};
    use std::os::unix::fs::symlink;
    use std::os::unix::net::UnixListener;

    #[test]
    fn whatever_is_no_regular_file_is_named_at_once() {
        let folder = tempfile::tempdir().unwrap();
        let (fifo, socket) = (folder.path().join("fifo"), folder.path().join("socket"));
        mknodat(CWD, &fifo, Kind::Fifo, Mode::RWXU, 0).unwrap();
        let _listener = UnixListener::bind(&socket).unwrap();
        let link = folder.path().join("link");
        symlink(&fifo, &link).unwrap();
        let cases = [
            (fifo.as_path(), "it is a pipe, not a regular file"),
            (&link, "it is a pipe, not a regular file"),
            (&socket, "it is a socket, not a regular file"),
            (folder.path(), "it is a folder, not a regular file"),
            (Path::new("/dev/zero"), "it is a device, not a regular file"),
        ];
        for (path, message) in cases {
            for error in [open(path).map(drop), read(path, 9).map(drop), open_lock(path).map(drop)]
            {
                assert_eq!(error.unwrap_err().to_string(), message, "{}", path.display());
            }
        }
        assert_eq!(open(&folder.path().join("none")).unwrap_err().kind(), ErrorKind::NotFound);
    }

    #[test]
    fn a_file_is_read_up_to_its_limit_only() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("text");
        fs::write(&path, "größe").unwrap();
        assert_eq!(read_text(&path, 7).unwrap(), "größe");
        let marked = folder.path().join("marked.txt");
        fs::write(&marked, "\u{feff}größe\u{feff}").unwrap();
        assert_eq!(read_text(&marked, 13).unwrap(), "größe\u{feff}");
        assert_eq!(read(&path, 6).unwrap_err().kind(), ErrorKind::FileTooLarge);
        fs::write(&path, b"ab\xffc").unwrap();
        let error = read_text(&path, 9).unwrap_err().to_string();
        assert_eq!(error, "it is not UTF-8 text: byte 2 begins no valid character");
        // A file of the system that says it has no bytes.
        let error = read(Path::new("/proc/self/status"), 10).unwrap_err().to_string();
        assert_eq!(error, "it has more than 10 bytes; at most 10 are read");
    }

    #[test]
    fn a_run_has_a_configuration_and_checkpoints() {
        let folder = tempfile::tempdir().unwrap();
        let here = folder.path();
        assert!(!is_run(here) && !is_run(&here.join("none")));
        fs::create_dir(here.join(RUN_CONFIG)).unwrap();
        fs::create_dir(here.join("elsewhere")).unwrap();
        symlink("elsewhere", here.join(RUN_CHECKPOINTS)).unwrap();
        assert!(!is_run(here));
        fs::remove_dir(here.join(RUN_CONFIG)).unwrap();
        fs::write(here.join(RUN_CONFIG), "").unwrap();
        assert!(is_run(here));
        fs::remove_file(here.join(RUN_CHECKPOINTS)).unwrap();
        assert!(!is_run(here));
    }

    #[test]
    fn names_stay_in_their_folder() {
        let folder = tempfile::tempdir().unwrap();
        let here = folder.path().join("here");
        fs::create_dir(&here).unwrap();
        fs::write(folder.path().join("outside"), "x").unwrap();
        fs::write(here.join("file"), "x").unwrap();
        symlink("file", here.join("link")).unwrap();
        symlink("../outside", here.join("out")).unwrap();
        for name in ["file", "link", "not-yet"] {
            assert_eq!(inside(&here, name).unwrap(), here.join(name));
        }
        for name in ["", ".", "..", "../outside", "/etc/passwd", "a/b", "file/", "./file", "out"] {
            assert!(inside(&here, name).is_err(), "{name:?}");
        }
    }

    #[test]
    fn a_lock_is_created_and_kept() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(".lock");
        drop(open_lock(&path).unwrap());
        fs::write(&path, "kept").unwrap();
        let lock = open_lock(&path).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "kept");
        assert!(is_at(&lock, &path));
        fs::rename(&path, folder.path().join("moved")).unwrap();
        assert!(!is_at(&lock, &path));
        drop(open_lock(&path).unwrap());
        assert!(!is_at(&lock, &path));
    }
}
