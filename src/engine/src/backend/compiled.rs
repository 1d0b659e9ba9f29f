//! Graphs as a provider compiled them, kept for the next start.
//!
//! ONNX Runtime writes what a provider made of a graph as a small graph of one
//! `EPContext` node, with the provider's own form beside it. A compiled graph
//! belongs to one graph, one set of weights, one plug-in and one set of
//! options: all of these are hashed into the name of its folder. It is kept
//! only when the provider took the whole graph, and it passes the self-test of
//! its model like any other session. Whatever is wrong with one, the graph is
//! compiled again.

use std::ffi::OsString;
use std::fs::{self, File, Metadata};
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

use glm::manifest;
use glm_onnx::model_dir::DATA;
use ort::session::builder::SessionBuilder;
use sha2::{Digest as _, Sha256};

use super::provider::{Placement, Provider};

/// Holds the number of nodes that were compiled, which the compiled graph does not tell.
const NODES: &str = "nodes";
/// Characters of a hash in the name of a folder: 64 bits, far more than one box will ever compile.
const NAME: usize = 16;

/// Where a compiled graph is or will be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Compiled {
    /// Folder of all of them.
    cache: PathBuf,
    /// What the folders of this graph and this provider begin with, whatever else changed.
    family: String,
    /// Folder in `cache`.
    name: String,
    /// File of the graph in it.
    file: OsString,
}

impl Compiled {
    /// The place of `model` as `provider` compiles it; `None` where nothing is to be kept.
    ///
    /// # Errors
    /// When the graph or what belongs to it cannot be read.
    pub fn of(provider: &Provider, model: &Path) -> io::Result<Option<Self>> {
        let (Some(cache), Some(file), Some(stem)) =
            (&provider.cache, model.file_name(), model.file_stem())
        else {
            return Ok(None);
        };
        if !provider.kind.compiles() {
            return Ok(None);
        }
        let mut hash = Sha256::new();
        let mut graph = File::open(model)?;
        // A graph of another program may hold its weights.
        let mut piece = vec![0; 64 << 10];
        loop {
            match graph.read(&mut piece)? {
                0 => break,
                length => hash.update(&piece[..length]),
            }
        }
        match fs::read(model.with_file_name(manifest::FILE)) {
            // It holds the hash of every file.
            Ok(bytes) => hash.update(bytes),
            Err(_) => hash.update(looks(&fs::metadata(model.with_file_name(DATA))?)),
        }
        if let Some(library) = &provider.library {
            hash.update(library.as_os_str().as_encoded_bytes());
            hash.update(looks(&fs::metadata(library)?));
        }
        for (key, value) in &provider.options {
            hash.update(format!("{key}={value}\n"));
        }
        let hash: String = (hash.finalize().iter())
            .map(|byte| format!("{byte:02x}"))
            .collect();
        let family = format!("{}-{}-", provider.kind, stem.to_string_lossy());
        Ok(Some(Self {
            cache: cache.clone(),
            name: format!("{family}{}", &hash[..NAME]),
            family,
            file: file.to_owned(),
        }))
    }

    fn folder(&self) -> PathBuf {
        self.cache.join(&self.name)
    }

    /// The folder while it is not whole. The graph names its files relatively, so the folder can be moved.
    fn part(&self) -> PathBuf {
        self.cache.join(format!("{}.part", self.name))
    }

    /// The compiled graph and the nodes that it stands for, where there is one.
    #[must_use]
    pub fn found(&self) -> Option<(PathBuf, usize)> {
        let nodes = fs::read_to_string(self.folder().join(NODES)).ok()?;
        let graph = self.folder().join(&self.file);
        (graph.is_file()).then_some((graph, nodes.trim().parse().ok()?))
    }

    /// Makes room for what [`record`](Self::record) lets a session write.
    ///
    /// # Errors
    /// When the folder cannot be made.
    pub fn prepare(&self) -> io::Result<()> {
        self.forget();
        fs::create_dir_all(self.part())
    }

    /// Makes a session write what its provider compiles.
    ///
    /// # Errors
    /// With the message of ONNX Runtime.
    pub fn record(&self, builder: SessionBuilder) -> Result<SessionBuilder, String> {
        let graph = self.part().join(&self.file);
        let entries = [
            ("ep.context_enable", "1"),
            ("ep.context_file_path", &*graph.to_string_lossy()),
            // Beside the graph: it may be larger than a graph file can be.
            ("ep.context_embed_mode", "0"),
        ];
        (entries.iter()).try_fold(builder, |builder, (key, value)| {
            let builder = builder.with_config_entry(*key, *value);
            builder.map_err(|error| error.to_string())
        })
    }

    /// Keeps what a session has written, and forgets what earlier files or options were compiled to.
    ///
    /// # Errors
    /// When the disk does not take it.
    pub fn keep(&self, placement: &Placement) -> io::Result<()> {
        let part = self.part();
        if placement.left() > 0 || !part.join(&self.file).is_file() {
            return fs::remove_dir_all(part);
        }
        fs::write(part.join(NODES), placement.taken.to_string())?;
        for entry in fs::read_dir(&self.cache)? {
            let entry = entry?;
            let name = entry.file_name();
            if name.as_encoded_bytes().starts_with(self.family.as_bytes()) && entry.path() != part {
                fs::remove_dir_all(entry.path())?;
            }
        }
        fs::rename(part, self.folder())
    }

    /// Removes what is there of it.
    pub fn forget(&self) {
        for folder in [self.folder(), self.part()] {
            // It may not be there.
            let _ = fs::remove_dir_all(folder);
        }
    }
}

/// Length and time of the last change: what tells two versions of a large file apart.
fn looks(file: &Metadata) -> String {
    let changed = file.modified().ok();
    let since = changed.and_then(|time| time.duration_since(UNIX_EPOCH).ok());
    format!("{} {}", file.len(), since.unwrap_or_default().as_nanos())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::backend::provider::ProviderKind;

    /// A model in a folder of its own, and a provider that keeps what it compiles beside it.
    fn model() -> (tempfile::TempDir, PathBuf, Provider) {
        let folder = tempfile::tempdir().unwrap();
        let graph = folder.path().join("model.onnx");
        for name in ["model.onnx", DATA, "plug-in.so"] {
            fs::write(folder.path().join(name), name).unwrap();
        }
        let provider = Provider {
            kind: ProviderKind::Qnn,
            library: Some(folder.path().join("plug-in.so")),
            options: BTreeMap::from([("htp_arch".to_owned(), "73".to_owned())]),
            partial: false,
            cache: Some(folder.path().join("cache")),
        };
        (folder, graph, provider)
    }

    fn whole(taken: usize) -> Placement {
        Placement {
            provider: ProviderKind::Qnn,
            taken,
            elsewhere: BTreeMap::new(),
        }
    }

    /// As a session does it.
    fn write(compiled: &Compiled) {
        compiled.prepare().unwrap();
        fs::write(compiled.part().join("model.onnx"), "compiled").unwrap();
    }

    #[test]
    fn whatever_a_compiled_graph_depends_on_is_in_its_name() {
        let (folder, graph, provider) = model();
        let name = |provider: &Provider| {
            let compiled = Compiled::of(provider, &graph).unwrap();
            compiled.map(|compiled| compiled.name)
        };
        let first = name(&provider);
        assert_eq!(name(&provider), first);
        let mut other = provider.clone();
        other
            .options
            .insert("soc_model".to_owned(), "43".to_owned());
        let mut names = vec![first, name(&other)];
        for file in ["model.onnx", DATA, "plug-in.so", manifest::FILE] {
            fs::write(folder.path().join(file), "changed!!").unwrap();
            names.push(name(&provider));
        }
        let different: std::collections::BTreeSet<_> = names.iter().collect();
        assert_eq!(different.len(), names.len(), "{names:?}");
        let nowhere = Provider {
            cache: None,
            ..provider.clone()
        };
        assert_eq!(name(&nowhere), None);
        let kind = ProviderKind::Cuda;
        assert_eq!(name(&Provider { kind, ..provider }), None);
    }

    #[test]
    fn only_a_whole_one_is_kept_and_the_last_one_alone() {
        let (folder, graph, mut provider) = model();
        let old = Compiled::of(&provider, &graph).unwrap().unwrap();
        assert_eq!(old.found(), None);
        write(&old);
        assert_eq!(old.found(), None, "it may not be whole");
        let mut partly = whole(7);
        partly.elsewhere.insert("Gather".to_owned(), 1);
        old.keep(&partly).unwrap();
        assert_eq!(old.found(), None);
        write(&old);
        old.keep(&whole(7)).unwrap();
        assert_eq!(old.found().unwrap().1, 7);

        // A step graph has its own place; another model's takes that of the old one.
        let step = folder.path().join("step.onnx");
        fs::write(&step, "step").unwrap();
        let step = Compiled::of(&provider, &step).unwrap().unwrap();
        write(&step);
        fs::write(step.part().join("step.onnx"), "compiled").unwrap();
        step.keep(&whole(5)).unwrap();
        provider.options.clear();
        let new = Compiled::of(&provider, &graph).unwrap().unwrap();
        write(&new);
        new.keep(&whole(9)).unwrap();
        assert_eq!((old.found(), new.found().unwrap().1), (None, 9));
        assert_eq!(step.found().unwrap().1, 5);
        new.forget();
        assert_eq!(new.found(), None);
    }
}
