//! What a save needs of a file system: a seam where tests put failures and full disks.

use std::fmt::Debug;
use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// A file that is being written.
pub trait StorageFile: Read + Write + Seek + Send {
    /// Waits until everything written is on the medium.
    ///
    /// # Errors
    /// The system's.
    fn sync(&mut self) -> io::Result<()>;
}

impl StorageFile for File {
    fn sync(&mut self) -> io::Result<()> {
        self.sync_all()
    }
}

/// The operations that a save is made of, in the order in which it needs them.
pub trait Storage: Debug + Send + Sync {
    /// Creates a directory and its parents; it may exist.
    ///
    /// # Errors
    /// The system's.
    fn create_dir(&self, path: &Path) -> io::Result<()>;

    /// Bytes that an unprivileged user may still write below `dir`.
    ///
    /// # Errors
    /// The system's.
    fn free_bytes(&self, dir: &Path) -> io::Result<u64>;

    /// Creates an empty file.
    ///
    /// # Errors
    /// The system's.
    fn create(&self, path: &Path) -> io::Result<Box<dyn StorageFile>>;

    /// Waits until the directory's entries are on the medium.
    ///
    /// # Errors
    /// The system's.
    fn sync_dir(&self, path: &Path) -> io::Result<()>;

    /// Renames a directory; nothing may be at `to`.
    ///
    /// # Errors
    /// The system's.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;

    /// Removes a directory with all that is in it.
    ///
    /// # Errors
    /// The system's.
    fn remove_dir(&self, path: &Path) -> io::Result<()>;
}

/// The file system.
#[derive(Debug, Clone, Copy, Default)]
pub struct Disk;

impl Storage for Disk {
    fn create_dir(&self, path: &Path) -> io::Result<()> {
        fs::create_dir_all(path)
    }

    fn free_bytes(&self, dir: &Path) -> io::Result<u64> {
        let stat = rustix::fs::statvfs(dir)?;
        Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
    }

    fn create(&self, path: &Path) -> io::Result<Box<dyn StorageFile>> {
        let mut options = File::options();
        options.read(true).write(true).create(true).truncate(true);
        Ok(Box::new(options.open(path)?))
    }

    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        File::open(path)?.sync_all()
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::rename(from, to)
    }

    fn remove_dir(&self, path: &Path) -> io::Result<()> {
        fs::remove_dir_all(path)
    }
}

/// The file system, until it fails for good: a power cut, or a disk that is full, on the way through a
/// save. For tests of whoever saves.
#[derive(Debug, Clone)]
pub struct FailingDisk(Arc<AtomicUsize>);

impl FailingDisk {
    /// One that does `operations` operations, and no more.
    pub fn after(operations: usize) -> Self {
        Self(Arc::new(AtomicUsize::new(operations)))
    }

    /// Operations that it still does.
    pub fn left(&self) -> usize {
        self.0.load(Ordering::SeqCst)
    }

    fn step(&self) -> io::Result<()> {
        let took =
            self.0.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1));
        took.map(drop).map_err(|_| io::Error::other("injected"))
    }
}

struct FailingFile(FailingDisk, Box<dyn StorageFile>);

impl Read for FailingFile {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        self.1.read(buf)
    }
}

impl Write for FailingFile {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        if let Err(error) = self.0.step() {
            // Half of it gets through.
            self.1.write_all(&buf[..buf.len() / 2])?;
            return Err(error);
        }
        self.1.write_all(buf).map(|()| buf.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.1.flush()
    }
}

impl Seek for FailingFile {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        self.1.seek(to)
    }
}

impl StorageFile for FailingFile {
    fn sync(&mut self) -> io::Result<()> {
        self.0.step()
    }
}

impl Storage for FailingDisk {
    fn create_dir(&self, path: &Path) -> io::Result<()> {
        self.step()?;
        Disk.create_dir(path)
    }

    fn free_bytes(&self, dir: &Path) -> io::Result<u64> {
        self.step()?;
        Disk.free_bytes(dir)
    }

    fn create(&self, path: &Path) -> io::Result<Box<dyn StorageFile>> {
        self.step()?;
        Ok(Box::new(FailingFile(self.clone(), Disk.create(path)?)))
    }

    fn sync_dir(&self, _: &Path) -> io::Result<()> {
        self.step()
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.step()?;
        Disk.rename(from, to)
    }

    fn remove_dir(&self, path: &Path) -> io::Result<()> {
        self.step()?;
        Disk.remove_dir(path)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_disk_knows_its_free_space() {
        let dir = tempfile::tempdir().unwrap();
        let free = Disk.free_bytes(dir.path()).unwrap();
        assert!(free > 1 << 20, "{free} bytes");
        assert!(Disk.free_bytes(&dir.path().join("nowhere")).is_err());
    }
}
