//! `glmctl model install`: a model is there whole and with the right hashes, or not at all.

use std::fs::{self, File};
use std::io::{self, ErrorKind, Read};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use clap::Args;
use glm::manifest::{self, Manifest, Sha256};
use glm_onnx::model_dir;
use rustix::fs::{CWD, RenameFlags};
use serde_json::json;
use sha2::Digest as _;

use crate::commands::operate::bytes;
use crate::failure::{Failure, Result};
use crate::options::Output;
use crate::print;
use crate::progress::{Bar, watched};

use super::store::Store;
use super::{Place, check, fetch, unpack};

/// Left free on the disk: logs and the journal of MQTT need some of it too.
const LEFT_FREE: u64 = 64 << 20;
/// Bytes that are read at a time.
const PIECE: usize = 1 << 20;

/// Install a model from a folder, a tar archive or a URL of one
///
/// Every file is compared with the model's manifest. The model appears when it is whole; until then, and after an error
/// or Ctrl-C, what was there before is. A download that broke off goes on when the same command is given again.
#[derive(Clone, Debug, Args)]
pub struct Install {
    /// Folder, tar archive, or its http:// or https:// address
    source: String,
    /// SHA-256 of the archive; needed for a URL
    #[arg(long, value_name = "HEX", value_parser = sha256)]
    sha256: Option<Sha256>,
    /// Name of the model here [default: the one in its manifest]
    #[arg(long)]
    name: Option<String>,
    /// Replace another model of this name
    #[arg(long)]
    force: bool,
    /// Let the link that the packaged service serves name this model
    #[arg(long)]
    activate: bool,
    #[command(flatten)]
    place: Place,
}

/// What an installation came to.
struct Outcome {
    name: String,
    path: PathBuf,
    bytes: u64,
    /// It was there already.
    unchanged: bool,
    link: Option<PathBuf>,
}

impl Install {
    /// Runs the command.
    pub fn run(self, output: Output) -> Result<()> {
        let outcome = watched(move |bar| self.install(bar))?;
        let Outcome {
            name,
            path,
            bytes: size,
            unchanged,
            link,
        } = outcome;
        if output == Output::Json {
            return print::json(&json!({
                "name": name, "path": path, "bytes": size, "unchanged": unchanged, "active": link,
            }));
        }
        let what = if unchanged {
            "is installed already"
        } else {
            "is installed"
        };
        print::line(&format!(
            "{name} {what}: {}, {}",
            path.display(),
            bytes(size)
        ))?;
        match link {
            Some(link) => print::line(&format!(
                "{} names it; `glmctl reload` lets a running glmd serve it",
                link.display()
            )),
            None => print::line(&format!(
                "To serve it, set model.path = \"{}\" in glmd.toml and run `glmctl reload`",
                path.display()
            )),
        }
    }

    fn install(self, bar: &Bar) -> Result<Outcome> {
        let store = Store::new(self.place.models.clone());
        let folder = store.folder()?.to_owned();
        let staging = tempfile::Builder::new()
            .prefix(".staging-")
            .tempdir_in(&folder)
            .map_err(|e| Failure::io(folder.display().to_string(), e))?;
        let mut downloaded = None;
        let root = if is_url(&self.source) {
            let wanted = self.sha256.ok_or_else(|| {
                Failure::Usage("a URL needs --sha256, which says what must come from it".to_owned())
            })?;
            let archive = fetch::fetch(&self.source, wanted, &folder, bar)?;
            let root = unpack::unpack(&archive, staging.path(), bar)?;
            downloaded = Some(archive);
            root
        } else {
            self.local(Path::new(&self.source), staging.path(), bar)?
        };
        let manifest = check(&root, bar)?;
        let name = self.name.clone().unwrap_or_else(|| manifest.name.clone());
        let path = store.place(&name)?;
        let unchanged = model_dir::read_manifest(&path).is_ok_and(|old| old == manifest)
            && check(&path, bar).is_ok();
        if !unchanged {
            readable(&root)?;
            put(&root, &path, self.force)?;
        }
        if let Some(archive) = downloaded {
            fs::remove_file(&archive).map_err(|e| Failure::io(archive.display().to_string(), e))?;
        }
        Ok(Outcome {
            link: self.activate.then(|| store.activate(&name)).transpose()?,
            bytes: size(&manifest),
            name,
            path,
            unchanged,
        })
    }

    /// A folder or an archive on this machine.
    fn local(&self, source: &Path, staging: &Path, bar: &Bar) -> Result<PathBuf> {
        let name = source.display().to_string();
        let found = fs::metadata(source).map_err(|e| Failure::io(&name, e))?;
        if found.is_dir() {
            if self.sha256.is_some() {
                let reason = "--sha256 is for archives; the files of a folder are compared with its manifest";
                return Err(Failure::Usage(reason.to_owned()));
            }
            copy(source, staging, bar)?;
            return Ok(staging.to_owned());
        }
        if let Some(wanted) = self.sha256 {
            let found = hash(source, bar)?;
            if found != wanted {
                let reason = format!("{name} has the SHA-256 {found}, not {wanted}");
                return Err(Failure::BadInput(reason));
            }
        }
        make_room(staging, found.len())?;
        unpack::unpack(source, staging, bar)
    }
}

fn sha256(text: &str) -> Result<Sha256, &'static str> {
    Sha256::try_from(text.to_ascii_lowercase())
}

fn is_url(source: &str) -> bool {
    source.starts_with("http://") || source.starts_with("https://")
}

fn size(manifest: &Manifest) -> u64 {
    manifest.files.values().map(|file| file.size).sum()
}

/// Copies the manifest and the files that it names.
fn copy(source: &Path, staging: &Path, bar: &Bar) -> Result<()> {
    let manifest = model_dir::read_manifest(source)?;
    model_dir::check_sizes(source, &manifest)?;
    let total = size(&manifest);
    make_room(staging, total)?;
    let mut done = 0;
    let names = manifest.files.keys().map(String::as_str);
    for name in names.chain([manifest::FILE]) {
        let (from, to) = (source.join(name), staging.join(name));
        let fault = |e| Failure::io(from.display().to_string(), e);
        let (mut from_file, mut to_file) = (
            File::open(&from).map_err(fault)?,
            File::create_new(&to).map_err(fault)?,
        );
        loop {
            let count = io::copy(&mut from_file.by_ref().take(PIECE as u64), &mut to_file)
                .map_err(fault)?;
            done += count;
            if bar.at("copy", done.min(total), total).is_break() {
                return Err(Failure::Interrupted);
            }
            if count < PIECE as u64 {
                break;
            }
        }
        to_file.sync_all().map_err(fault)?;
    }
    Ok(())
}

/// Puts a model in its place from one moment to the next.
fn put(root: &Path, path: &Path, force: bool) -> Result<()> {
    let name = path.display().to_string();
    let fault = |e: io::Error| Failure::io(&name, e);
    if path.exists() {
        if !force {
            let reason = "another model is installed under this name; --force replaces it, --name takes another";
            return Err(fault(io::Error::new(ErrorKind::AlreadyExists, reason)));
        }
        // The two change places; the old one goes with the staging folder.
        rustix::fs::renameat_with(CWD, root, CWD, path, RenameFlags::EXCHANGE)
            .map_err(|e| fault(e.into()))?;
    } else {
        fs::rename(root, path).map_err(fault)?;
    }
    // So that the name is there after a power cut, too.
    path.parent().map_or(Ok(()), |folder| {
        File::open(folder)
            .and_then(|folder| folder.sync_all())
            .map_err(fault)
    })
}

/// Lets everybody read a model: the daemon is another user than who installs.
fn readable(root: &Path) -> Result<()> {
    let set = |path: &Path, mode| {
        fs::set_permissions(path, fs::Permissions::from_mode(mode))
            .map_err(|e| Failure::io(path.display().to_string(), e))
    };
    set(root, 0o755)?;
    let entries = fs::read_dir(root).map_err(|e| Failure::io(root.display().to_string(), e))?;
    for entry in entries.flatten() {
        let path = entry.path();
        match path.is_dir() {
            true => readable(&path)?,
            false => set(&path, 0o644)?,
        }
    }
    Ok(())
}

/// Fails when the disk of `folder` has no room for so many bytes.
pub fn make_room(folder: &Path, needed: u64) -> Result<()> {
    let name = folder.display().to_string();
    let disk = rustix::fs::statvfs(folder).map_err(|e| Failure::io(&name, e.into()))?;
    let free = disk.f_bavail.saturating_mul(disk.f_frsize);
    if needed.saturating_add(LEFT_FREE) > free {
        let reason = format!(
            "the disk has {} free, {} are needed and {} must stay free",
            bytes(free),
            bytes(needed),
            bytes(LEFT_FREE)
        );
        return Err(Failure::io(
            name,
            io::Error::new(ErrorKind::StorageFull, reason),
        ));
    }
    Ok(())
}

/// SHA-256 of a file.
pub fn hash(path: &Path, bar: &Bar) -> Result<Sha256> {
    let fault = |e| Failure::io(path.display().to_string(), e);
    let mut file = File::open(path).map_err(fault)?;
    let total = file.metadata().map_err(fault)?.len();
    let mut hash = sha2::Sha256::new();
    let mut piece = vec![0; PIECE];
    let mut done = 0;
    loop {
        let count = file.read(&mut piece).map_err(fault)?;
        if count == 0 {
            return Ok(Sha256(hash.finalize().into()));
        }
        hash.update(&piece[..count]);
        done += count as u64;
        if bar.at("hashes", done, total).is_break() {
            return Err(Failure::Interrupted);
        }
    }
}
