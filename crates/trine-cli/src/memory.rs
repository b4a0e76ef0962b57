//! How much memory this process may use: the machine's free memory, its control group, and its own limits.

use rustix::process::{Resource, getrlimit};
use std::fs;
use std::path::{Path, PathBuf};
use trine_trainer::MemoryLimit;

/// Every limit that the system tells (Linux).
pub(crate) fn limits() -> Vec<MemoryLimit> {
    let root = Path::new("/");
    let own = [(Resource::As, "VmSize:", "ulimit -v"), (Resource::Data, "VmData:", "ulimit -d")];
    let own = own.into_iter().filter_map(|(resource, line, by)| {
        let most = getrlimit(resource).current?;
        let bytes = most.saturating_sub(kilobytes(root, "proc/self/status", line)?);
        Some(MemoryLimit { bytes, by: by.into(), own: true })
    });
    own.chain(shared(root)).collect()
}

/// The most memory that this machine, or this process's control group on it, has for all: used or not.
pub(crate) fn total_bytes() -> Option<u64> {
    let root = Path::new("/");
    let machine = kilobytes(root, "proc/meminfo", "MemTotal:");
    groups(root).iter().filter_map(Group::most).chain(machine).min()
}

/// Limits for all processes of a machine whose file system is at `root`.
fn shared(root: &Path) -> Vec<MemoryLimit> {
    let shared = |bytes, by: &str| MemoryLimit { bytes, by: by.into(), own: false };
    let free = kilobytes(root, "proc/meminfo", "MemAvailable:");
    let free = free.map(|bytes| shared(bytes, "free memory"));
    let groups = groups(root);
    free.into_iter()
        .chain(groups.iter().filter_map(Group::left).map(|bytes| shared(bytes, "cgroup")))
        .collect()
}

/// A line such as `MemTotal:  1024 kB` in bytes.
fn kilobytes(root: &Path, file: &str, name: &str) -> Option<u64> {
    let text = fs::read_to_string(root.join(file)).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    line.split_whitespace().next()?.parse::<u64>().ok()?.checked_mul(1024)
}

/// A control group's folder, and what its files are called.
struct Group {
    folder: PathBuf,
    files: &'static Files,
}

struct Files {
    most: &'static str,
    used: &'static str,
    /// Lines of `memory.stat`: the cache of files, which is given up when memory is short.
    given_up: [&'static str; 2],
}

const VERSION_2: Files = Files {
    most: "memory.max",
    used: "memory.current",
    given_up: ["inactive_file", "active_file"],
};

const VERSION_1: Files = Files {
    most: "memory.limit_in_bytes",
    used: "memory.usage_in_bytes",
    given_up: ["total_inactive_file", "total_active_file"],
};

/// The process's control group and those above it. In a container, the outer ones do not show.
fn groups(root: &Path) -> Vec<Group> {
    let text = fs::read_to_string(root.join("proc/self/cgroup")).unwrap_or_default();
    let found = text.lines().filter_map(|line| {
        let mut parts = line.splitn(3, ':');
        let (_, controllers, path) = (parts.next()?, parts.next()?, parts.next()?);
        let (mount, files) = match controllers {
            "" => ("sys/fs/cgroup", &VERSION_2),
            list if list.split(',').any(|name| name == "memory") => {
                ("sys/fs/cgroup/memory", &VERSION_1)
            }
            _ => return None,
        };
        let mount = root.join(mount);
        let own = mount.join(path.trim_start_matches('/'));
        let above: Vec<PathBuf> =
            own.ancestors().take_while(|above| above.starts_with(&mount)).map(Into::into).collect();
        Some(above.into_iter().map(move |folder| Group { folder, files }))
    });
    found.flatten().collect()
}

impl Group {
    fn number(&self, file: &str) -> Option<u64> {
        fs::read_to_string(self.folder.join(file)).ok()?.trim().parse().ok()
    }

    /// Its limit. None is written as a word in version 2, and as more than any machine has in version 1.
    fn most(&self) -> Option<u64> {
        self.number(self.files.most).filter(|most| *most < 1 << 60)
    }

    /// What is left of it.
    fn left(&self) -> Option<u64> {
        let most = self.most()?;
        let stat = fs::read_to_string(self.folder.join("memory.stat")).unwrap_or_default();
        let pages = stat.lines().filter_map(|line| {
            let (name, bytes) = line.split_once(' ')?;
            self.files.given_up.contains(&name).then(|| bytes.parse::<u64>().ok())?
        });
        let used = self.number(self.files.used).unwrap_or(0).saturating_sub(pages.sum());
        Some(most.saturating_sub(used))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A file system with these files.
    fn system(files: &[(&str, &str)]) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        for (path, text) in files {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        root
    }

    fn found(files: &[(&str, &str)]) -> Vec<(u64, String)> {
        let root = system(files);
        shared(root.path()).into_iter().map(|limit| (limit.bytes, limit.by)).collect()
    }

    const FREE: (&str, &str) =
        ("proc/meminfo", "MemTotal:  4000 kB\nMemFree:  10 kB\nMemAvailable:    2000 kB\n");

    #[test]
    fn groups_of_version_2_are_walked_to_the_top() {
        let all = found(&[
            FREE,
            ("proc/self/cgroup", "0::/outer/inner\n"),
            ("sys/fs/cgroup/outer/memory.max", "900000\n"),
            ("sys/fs/cgroup/outer/memory.current", "500000\n"),
            (
                "sys/fs/cgroup/outer/memory.stat",
                "anon 1\ninactive_file 100000\nactive_file 50000\n",
            ),
            ("sys/fs/cgroup/outer/inner/memory.max", "max\n"),
            ("sys/fs/cgroup/outer/inner/memory.current", "400000\n"),
        ]);
        assert_eq!(all, [(2_048_000, "free memory".into()), (550_000, "cgroup".into())]);
    }

    #[test]
    fn groups_of_version_1_and_containers_that_show_no_path_are_known() {
        let all = found(&[
            FREE,
            ("proc/self/cgroup", "4:cpu,cpuacct:/a\n3:memory:/docker/0123\n"),
            ("sys/fs/cgroup/memory/memory.limit_in_bytes", "600000000\n"),
            ("sys/fs/cgroup/memory/memory.usage_in_bytes", "700000000\n"),
            ("sys/fs/cgroup/memory/memory.stat", "total_inactive_file 200000000\n"),
        ]);
        assert_eq!(all[1], (100_000_000, "cgroup".into()));
        let none = [
            FREE,
            ("proc/self/cgroup", "3:memory:/\n"),
            ("sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712\n"),
        ];
        assert_eq!(found(&none).len(), 1);
        assert_eq!(found(&[]), []);
    }

    #[test]
    fn this_system_tells_its_memory() {
        let total = total_bytes().unwrap();
        assert!(limits().iter().all(|limit| limit.own || limit.bytes <= total + (1 << 30)));
        assert!(limits().iter().any(|limit| limit.by == "free memory"));
    }
}
