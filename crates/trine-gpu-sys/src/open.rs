//! Opening a library and finding its functions.

use crate::error::Refused;
use crate::search::{Search, beginning};
use std::ffi::{CStr, CString, c_void};
use std::io::ErrorKind;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::ptr::NonNull;

/// A library that is open. It is never closed: what its functions have started may go on as long as the process.
#[derive(Debug)]
pub(crate) struct Opened {
    handle: NonNull<c_void>,
    /// Its file; the name alone where the system does not say which file it took.
    pub(crate) path: PathBuf,
}

/// Opens the first of the files `names` that there is, its companions before it. Else the files that
/// are there and cannot be opened.
pub(crate) fn open(
    names: &[&str],
    companions: Option<&str>,
    search: &Search,
) -> Result<Opened, Vec<Refused>> {
    let mut refused = Vec::new();
    for name in names.iter().filter(|_| search.system) {
        match dlopen(Path::new(name)) {
            Ok(handle) => return Ok(Opened { path: file_of(handle, name), handle }),
            Err(why) => refused.extend(unless_absent(name, why)),
        }
    }
    for path in search.places().flat_map(|place| names.iter().map(move |name| place.join(name))) {
        match open_file(&path, companions) {
            Ok(Some(handle)) => return Ok(Opened { handle, path }),
            Ok(None) => {}
            Err(why) => refused.push(Refused { path, why }),
        }
    }
    Err(refused)
}

impl Opened {
    /// The address of a function.
    pub(crate) fn symbol(&self, name: &str) -> Option<NonNull<c_void>> {
        let name = CString::new(name).ok()?;
        // SAFETY: the handle is of a library that stays open; the name ends with a zero byte.
        NonNull::new(unsafe { libc::dlsym(self.handle.as_ptr(), name.as_ptr()) })
    }
}

/// Opens a file; `None` if there is none.
fn open_file(path: &Path, companions: Option<&str>) -> Result<Option<NonNull<c_void>>, String> {
    match trine_files::open(path) {
        Ok(_) => {}
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error.to_string()),
    }
    let folder = path.parent().unwrap_or(Path::new(""));
    for companion in companions.into_iter().flat_map(|start| beginning(folder, start)) {
        // One that cannot be opened is missed by the library itself, if it is needed.
        let _ = trine_files::open(&companion).map(|_| dlopen(&companion));
    }
    // A name without a slash would be looked for elsewhere.
    dlopen(&Path::new(".").join(path)).map(Some)
}

fn dlopen(name: &Path) -> Result<NonNull<c_void>, String> {
    let name = CString::new(name.as_os_str().as_bytes()).map_err(|error| error.to_string())?;
    // SAFETY: the name ends with a zero byte. A library's start-up code is trusted as the system's
    // loader trusts it: it is a file that the caller, or the machine's owner, has put there.
    let handle = unsafe { libc::dlopen(name.as_ptr(), libc::RTLD_NOW | libc::RTLD_LOCAL) };
    NonNull::new(handle).ok_or_else(last_error)
}

/// What the loader says of the last failure of this thread.
fn last_error() -> String {
    // SAFETY: the text is null or ends with a zero byte, and stays until the thread's next call.
    let text = unsafe { crate::error::text_at(libc::dlerror()) };
    text.unwrap_or_else(|| "the loader gives no reason".into())
}

/// A file that is not there is no failure; one that lacks what it depends on is. Then the loader
/// names the other file.
fn unless_absent(name: &str, why: String) -> Option<Refused> {
    let is_absent = why.contains(name) && why.to_lowercase().contains("no such file");
    (!is_absent).then(|| Refused { path: name.into(), why })
}

/// The file that the system took for `name`.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
fn file_of(handle: NonNull<c_void>, name: &str) -> PathBuf {
    /// The public beginning of `struct link_map` in glibc's `link.h`.
    #[repr(C)]
    struct LinkMap {
        address: usize,
        name: *const std::ffi::c_char,
    }
    let mut map: *const LinkMap = std::ptr::null();
    let into = (&raw mut map).cast::<c_void>();
    // SAFETY: the handle is open; this request writes one pointer.
    let code = unsafe { libc::dlinfo(handle.as_ptr(), libc::RTLD_DI_LINKMAP, into) };
    if code != 0 || map.is_null() {
        return name.into();
    }
    // SAFETY: the loader's entry of a library that stays open; its name ends with a zero byte.
    let path = unsafe { CStr::from_ptr((*map).name) };
    PathBuf::from(std::ffi::OsStr::from_bytes(path.to_bytes()))
}

/// Other loaders do not say.
#[cfg(not(all(target_os = "linux", target_env = "gnu")))]
fn file_of(_: NonNull<c_void>, name: &str) -> PathBuf {
    name.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The C library is there wherever Rust's is.
    #[test]
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    fn what_the_system_finds_has_a_path() {
        let system = Search { system: true, folders: Vec::new() };
        let opened = open(&["libno-such-library.so.1", "libc.so.6"], None, &system).unwrap();
        assert!(opened.path.is_absolute() && opened.path.is_file(), "{:?}", opened.path);
        assert!(opened.symbol("strlen").is_some() && opened.symbol("cuInit").is_none());
        assert!(opened.symbol("a\0b").is_none());
    }

    #[test]
    fn a_file_that_is_no_library_is_refused_and_a_missing_one_is_not() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("liba.so.2"), "no library").unwrap();
        std::fs::create_dir(folder.path().join("liba.so.1")).unwrap();
        let search = Search::only(vec![folder.path().to_owned()]);
        let refused = open(&["liba.so.3", "liba.so.2", "liba.so.1"], None, &search).unwrap_err();
        assert_eq!(refused.len(), 2, "{refused:?}");
        assert!(refused[0].path.ends_with("liba.so.2") && !refused[0].why.is_empty());
        assert_eq!(refused[1].why, "it is a folder, not a regular file");
        let system = Search { system: true, folders: Vec::new() };
        assert_eq!(open(&["libno-such-library.so.1"], None, &system).unwrap_err(), []);
    }
}
