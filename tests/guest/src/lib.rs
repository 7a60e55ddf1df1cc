//! A virtual machine's kernel and first file system: Debian's, with busybox, out of packages and the programs that are
//! installed. Nothing here needs root.

mod boot;
mod cpio;

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use cpio::Archive;

/// The package that leads to the kernel for virtual machines.
const KERNEL: &str = "linux-image-cloud-amd64";
/// What a guest on `microvm` or `q35` needs that the kernel does not have built in.
const MODULES: &[&str] = &["virtio_mmio", "virtio_pci", "virtio_net"];
/// Programs beside busybox, with their libraries.
const PROGRAMS: &[&str] = &["/usr/bin/iperf3"];

/// What QEMU boots.
#[derive(Clone, Debug)]
pub struct Image {
    /// The compressed kernel.
    pub kernel: PathBuf,
    /// The archive that the kernel unpacks into its first file system.
    pub files: PathBuf,
}

impl Image {
    /// The image in `folder`; made when it is not there.
    ///
    /// # Errors
    /// With a sentence when a package or a program is missing, or `folder` cannot be written.
    pub fn build(folder: &Path) -> Result<Self, String> {
        let image = Self { kernel: folder.join("vmlinuz"), files: folder.join("initrd") };
        if image.kernel.is_file() && image.files.is_file() {
            return Ok(image);
        }
        let packages = folder.join("packages");
        fs::create_dir_all(&packages).map_err(|error| told(&packages, &error))?;
        let unpacked = unpack_kernel(&packages)?;
        let versions = fs::read_dir(unpacked.join("lib/modules"));
        let version = versions
            .ok()
            .and_then(|mut entries| entries.next()?.ok())
            .ok_or("the kernel's package has no modules")?
            .file_name();
        let modules = unpacked.join("lib/modules").join(&version);
        write(&image.files, &first_files(&modules)?)?;
        // Last: the image is there when its kernel is.
        let kernel = unpacked.join(format!("boot/vmlinuz-{}", version.to_string_lossy()));
        write(&image.kernel, &read(&kernel)?)?;
        Ok(image)
    }

    /// Words for QEMU that boot the image, with the agent's line on the socket at `agent`. What belongs to the network
    /// is not among them.
    #[must_use]
    pub fn boot(&self, agent: &Path) -> Vec<String> {
        boot::qemu(self, agent)
    }

    /// The same for a guest that fetches the page at `url` once it is up, and serves what came of it.
    #[must_use]
    pub fn boot_and_greet(&self, agent: &Path, url: &str) -> Vec<String> {
        let mut words = self.boot(agent);
        for word in &mut words {
            if word.starts_with("console=") {
                word.push_str(&format!(" greet={url}"));
            }
        }
        words
    }
}

fn told(path: &Path, error: &std::io::Error) -> String {
    format!("{}: {error}", path.display())
}

/// Whole or not at all.
fn write(path: &Path, content: &[u8]) -> Result<(), String> {
    let fresh = path.with_extension("new");
    fs::write(&fresh, content)
        .and_then(|()| fs::rename(&fresh, path))
        .map_err(|error| told(path, &error))
}

fn unpack_kernel(folder: &Path) -> Result<PathBuf, String> {
    let depends = output(Command::new("apt-cache").args(["depends", KERNEL]))?;
    let package = depends
        .lines()
        .filter_map(|line| line.trim().strip_prefix("Depends: "))
        .find(|name| name.starts_with("linux-image-"))
        .ok_or_else(|| format!("{KERNEL} is not known here; as root: apt-get update"))?;
    output(Command::new("apt-get").args(["download", "-q", package]).current_dir(folder))?;
    let archive = fs::read_dir(folder)
        .map_err(|error| told(folder, &error))?
        .flatten()
        .map(|entry| entry.path())
        .find(|path| path.extension().is_some_and(|it| it == "deb"))
        .ok_or("the kernel's package was not downloaded")?;
    let unpacked = folder.join("kernel");
    output(Command::new("dpkg-deb").arg("-x").arg(&archive).arg(&unpacked))?;
    Ok(unpacked)
}

fn output(command: &mut Command) -> Result<String, String> {
    let ended = command.output().map_err(|error| format!("{command:?}: {error}"))?;
    if !ended.status.success() {
        return Err(format!("{command:?}: {}", String::from_utf8_lossy(&ended.stderr)));
    }
    Ok(String::from_utf8_lossy(&ended.stdout).into_owned())
}

fn first_files(modules: &Path) -> Result<Vec<u8>, String> {
    let mut archive = Archive::default();
    for folder in ["bin", "dev", "etc", "lib", "lib64", "modules", "proc", "sys", "tmp", "www"] {
        archive.directory(folder);
    }
    // Before anything is mounted the kernel opens it for the first process.
    archive.character_device("dev/console", (5, 1));
    archive.program("init", include_bytes!("init.sh"));
    archive.program("bin/lease", include_bytes!("lease.sh"));
    let busybox = installed("busybox").ok_or("busybox is not installed")?;
    archive.program("bin/busybox", &read(&busybox)?);
    for name in output(Command::new(&busybox).arg("--list"))?.lines().filter(|it| *it != "busybox")
    {
        archive.link(&format!("bin/{name}"), "busybox");
    }
    let mut libraries = BTreeSet::new();
    for program in PROGRAMS.iter().map(Path::new) {
        let name = program.file_name().expect("a program has a name").to_string_lossy();
        archive.program(&format!("bin/{name}"), &read(program)?);
        libraries.extend(libraries_of(program)?);
    }
    for library in libraries {
        let name = library.file_name().expect("a library has a name").to_string_lossy();
        let folder = if name.starts_with("ld-linux") { "lib64" } else { "lib" };
        archive.program(&format!("{folder}/{name}"), &read(&library)?);
    }
    let mut placed = Vec::new();
    for name in MODULES {
        place_module(modules, name, &mut placed, &mut archive)?;
    }
    Ok(archive.finish())
}

fn read(path: &Path) -> Result<Vec<u8>, String> {
    fs::read(path).map_err(|error| told(path, &error))
}

fn installed(program: &str) -> Option<PathBuf> {
    ["/bin", "/usr/bin"]
        .iter()
        .map(|folder| Path::new(folder).join(program))
        .find(|it| it.is_file())
}

/// Paths that the dynamic loader would open.
fn libraries_of(program: &Path) -> Result<Vec<PathBuf>, String> {
    let listed = output(Command::new("ldd").arg(program))?;
    let paths = listed.split_whitespace().filter(|word| word.starts_with('/'));
    Ok(paths.map(PathBuf::from).collect())
}

/// A module after those that it depends on; one that is not there is built in.
fn place_module(
    folder: &Path,
    name: &str,
    placed: &mut Vec<String>,
    archive: &mut Archive,
) -> Result<(), String> {
    let name = name.replace('-', "_");
    if placed.contains(&name) {
        return Ok(());
    }
    let Some(path) = find_module(folder, &name) else { return Ok(()) };
    let content = read(&path)?;
    for needed in dependencies(&content) {
        place_module(folder, &needed, placed, archive)?;
    }
    archive.program(&format!("modules/{:02}-{name}.ko", placed.len()), &content);
    placed.push(name);
    Ok(())
}

fn find_module(folder: &Path, name: &str) -> Option<PathBuf> {
    for entry in fs::read_dir(folder).ok()?.flatten() {
        let path = entry.path();
        if path.is_dir() {
            // `build` and `source` are links to what is not installed.
            if !path.is_symlink()
                && let Some(found) = find_module(&path, name)
            {
                return Some(found);
            }
        } else if path.extension().is_some_and(|it| it == "ko")
            && path.file_stem().is_some_and(|it| it.to_string_lossy().replace('-', "_") == name)
        {
            return Some(path);
        }
    }
    None
}

/// The names behind `depends=` in a module's own description.
fn dependencies(module: &[u8]) -> Vec<String> {
    let key = b"\0depends=";
    let Some(at) = module.windows(key.len()).position(|window| window == key) else {
        return Vec::new();
    };
    let list = module[at + key.len()..].split(|byte| *byte == 0).next().unwrap_or_default();
    let list = String::from_utf8_lossy(list);
    list.split(',').filter(|name| !name.is_empty()).map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_module_names_what_it_depends_on() {
        let description = b"\x7fELF\0license=GPL\0depends=net_failover,virtio\0name=x\0";
        assert_eq!(dependencies(description), ["net_failover", "virtio"]);
        assert!(dependencies(b"\0depends=\0").is_empty());
    }
}
