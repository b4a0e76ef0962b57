//! A library as data, and how its table is filled.

use crate::error::{CallError, LoadError, Version};
use crate::open::open;
use crate::search::Search;
use std::ffi::c_void;
use std::path::PathBuf;
use std::ptr::NonNull;

/// A library: how it is called, the files that it may be in, and its names for the functions of a table.
#[derive(Debug)]
pub struct Library<S> {
    /// What it is called.
    pub name: &'static str,
    /// The names of its files, the newest first.
    pub files: &'static [&'static str],
    /// How the names of files begin that it opens by their names alone. Beside its own file they are opened first, as
    /// the loader looks for them elsewhere.
    pub companions: Option<&'static str>,
    /// The oldest version that can be used.
    pub version_min: Version,
    /// Its names for the functions.
    pub symbols: S,
}

/// Where the function of a symbol is.
pub type Lookup<'a> = &'a dyn Fn(&'static str) -> Result<NonNull<c_void>, LoadError>;

/// The functions of a library.
pub trait Table: Sized {
    /// A name for each function.
    type Symbols: 'static;

    /// Looks up every function.
    ///
    /// # Safety
    /// `lookup` gives the address of a function with the table's signature, for as long as the process runs.
    ///
    /// # Errors
    /// Those of `lookup`.
    unsafe fn fill(symbols: &'static Self::Symbols, lookup: Lookup) -> Result<Self, LoadError>;

    /// The version of the library.
    ///
    /// # Errors
    /// If the library does not say it.
    fn version(&self) -> Result<Version, CallError>;
}

/// A library that is open and has all that a table needs.
#[derive(Debug)]
pub struct Loaded<T> {
    /// Its functions.
    pub functions: T,
    /// Its file.
    pub path: PathBuf,
    /// Its version.
    pub version: Version,
}

/// Opens a library and fills its table. It stays open as long as the process runs.
///
/// To open a library runs its code: search in folders that are trusted.
///
/// # Errors
/// If none of its files can be opened, or the first that can lacks a function or is too old.
pub fn load<T: Table>(
    library: &'static Library<T::Symbols>,
    search: &Search,
) -> Result<Loaded<T>, LoadError> {
    let name = library.name;
    let opened = open(library.files, library.companions, search).map_err(|refused| {
        let Search { system, folders } = search.clone();
        LoadError::Missing { library: name, files: library.files, system, folders, refused }
    })?;
    let path = opened.path.clone();
    let lookup = |symbol| {
        let missing = || LoadError::Symbol { library: name, path: path.clone(), symbol };
        opened.symbol(symbol).ok_or_else(missing)
    };
    // SAFETY: a library of this name has these functions with these signatures in every version, and
    // it is never closed.
    let functions = unsafe { T::fill(&library.symbols, &lookup) }?;
    let found = functions.version().map_err(|source| LoadError::Version {
        library: name,
        path: path.clone(),
        source,
    })?;
    let least = library.version_min;
    if found < least {
        return Err(LoadError::Old { library: name, path, found, least });
    }
    Ok(Loaded { functions, path, version: found })
}
