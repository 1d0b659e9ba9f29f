//! Which backend runs a model: the first that can and that answers right.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use glm_onnx::paging::{self, Matmul, Outcome, Paged};
use glm_onnx::proto::ModelProto;
use prost::Message;

use super::directory::{Directory, failed};
use super::matmul::{self, Subject};
use super::verdict::{Reason, Verdict};
use super::{Attempt, BackendKind, Options, Report, onnxruntime, self_test};
use crate::backend::fixed::FixedShapes;
use crate::backend::library::Search;
use crate::backend::ort_paged::OrtRuntime;
use crate::backend::paged::{Limits, Operators, PagedBackend};
use crate::backend::portable::{self, Portable};
use crate::backend::provider::{Placement, Provider};
use crate::backend::threads::Threads;
use crate::backend::{Backend, BackendError};
use crate::{Error, Result, events};

/// A backend that has passed the self-test, and how far off its logits were of how far they may be.
type Tested = (Box<dyn Backend>, Option<(f32, f32)>);

/// What all attempts share.
struct Chooser<'a> {
    graph: &'a Path,
    /// Longest text that the graph can run, in tokens.
    context: usize,
    options: &'a Options,
    threads: &'a Threads,
    search: &'a Search,
    /// The graph, read and rewritten when the first backend asks for it, and whose products it has.
    rewritten: Option<(Matmul, Outcome)>,
    /// Instruction set of the kernels of the last attempt that used them.
    kernels: Option<&'static str>,
    /// Where the nodes of the last attempt run, if it was on a provider.
    placement: Option<Placement>,
    /// Whose products the last attempt uses, if there was a choice.
    matmul: Option<Verdict>,
}

/// The first backend that passes the self-test, or every reason why there is none.
pub(super) fn choose(
    directory: &Directory,
    options: &Options,
    threads: &Threads,
    search: &Search,
) -> Result<(Box<dyn Backend>, Report)> {
    let mut chooser = Chooser::new(directory, options, threads, search);
    let mut report = Report {
        library: search
            .library
            .as_ref()
            .map(|found| (found.candidate.path.clone(), found.build.clone())),
        unusable: search
            .tried
            .iter()
            .map(|(candidate, reason)| (candidate.path.clone(), reason.to_string()))
            .collect(),
        threads: threads.count,
        cpus: threads.cpus.clone(),
        ..Report::default()
    };
    for (kind, provider) in candidates(options) {
        chooser.matmul = None;
        let tested = match kind {
            BackendKind::OrtPaged => chooser.ort_paged_tested(directory),
            _ => (chooser.open(kind, provider)).and_then(|backend| tested(directory, backend)),
        };
        match tested {
            Ok((backend, deviation)) => {
                report.backend = Some(kind);
                report.placement = chooser.placement;
                report.deviation = deviation;
                report.kernels = chooser.kernels;
                report.matmul = chooser.matmul;
                return Ok((backend, report));
            }
            Err(reason) => report.attempts.push(Attempt {
                backend: kind,
                provider: provider.map(|provider| provider.kind),
                reason,
            }),
        }
    }
    let reasons = report.backend_reason().unwrap_or_default();
    Err(Error::Load {
        reason: format!(
            "{}: no backend runs it: {reasons}",
            directory.folder.display()
        ),
    })
}

/// What is tried, in order: the accelerator that was asked for, then the CPU.
fn candidates(options: &Options) -> impl Iterator<Item = (BackendKind, Option<&Provider>)> {
    let accelerated = options.provider.as_ref();
    let plain = BackendKind::ALL
        .into_iter()
        .filter(|kind| options.backend.is_none_or(|only| only == *kind));
    accelerated
        .map(|provider| (BackendKind::OrtPortable, Some(provider)))
        .into_iter()
        .chain(plain.map(|kind| (kind, None)))
}

/// One backend on a bare graph, without self-test.
pub(super) fn only(
    graph: &Path,
    context: usize,
    kind: BackendKind,
    options: &Options,
    threads: &Threads,
    search: &Search,
) -> Result<Box<dyn Backend>> {
    let mut chooser = Chooser {
        graph,
        context,
        options,
        threads,
        search,
        rewritten: None,
        kernels: None,
        placement: None,
        matmul: None,
    };
    chooser
        .open(kind, None)
        .map_err(|reason| failed(graph, format!("{kind}: {reason}")))
}

/// Whether the graph can be read, and has no more unknown nodes than the backends cope with.
///
/// # Errors
/// [`Error::Load`](crate::Error::Load) naming the file.
pub(super) fn check_graph(directory: &Directory) -> Result<()> {
    let path = directory.graph.as_path();
    let bytes = fs::read(path).map_err(|error| failed(path, error))?;
    let model = ModelProto::decode(bytes.as_slice()).map_err(|error| failed(path, error))?;
    match (paging::page(&model), &directory.manifest) {
        // What we exported is made for paged caches; others may run as they are.
        (Outcome::Unmodified(unknown), Some(_)) => Err(failed(path, unknown)),
        _ => Ok(()),
    }
}

/// The library that the probe found.
pub(super) fn library_of(search: &Search) -> Result<&Path, String> {
    match (&search.library, search.tried.as_slice()) {
        (Some(found), _) => Ok(&found.candidate.path),
        (None, []) => Err("no libonnxruntime was found".to_owned()),
        (None, tried) => {
            let reasons = tried
                .iter()
                .map(|(candidate, reason)| format!("{}: {reason}", candidate.path.display()));
            Err(reasons.collect::<Vec<_>>().join(", "))
        }
    }
}

/// Asks for the golden logits of the model, or of models without, for any logits.
fn tested(directory: &Directory, mut backend: Box<dyn Backend>) -> Result<Tested, String> {
    let deviation = match &directory.manifest {
        Some(manifest) => {
            let golden = &manifest.golden;
            let worst = self_test::golden(backend.as_mut(), golden)?;
            Some((worst, golden.tolerance))
        }
        None => self_test::finite(backend.as_mut()).map(|()| None)?,
    };
    Ok((backend, deviation))
}

impl<'a> Chooser<'a> {
    fn new(
        directory: &'a Directory,
        options: &'a Options,
        threads: &'a Threads,
        search: &'a Search,
    ) -> Self {
        Self {
            graph: &directory.graph,
            context: directory.context,
            options,
            threads,
            search,
            rewritten: None,
            kernels: None,
            placement: None,
            matmul: None,
        }
    }

    fn open(
        &mut self,
        kind: BackendKind,
        provider: Option<&Provider>,
    ) -> Result<Box<dyn Backend>, String> {
        self.placement = None;
        match kind {
            BackendKind::OrtPaged => {
                self.ort_paged(self.options.matmul.only.unwrap_or(Matmul::Glmd))
            }
            BackendKind::TractPaged => self.tract_paged(),
            BackendKind::OrtPortable => self.ort_portable(provider),
        }
    }

    /// The graph as it runs on paged caches; kept until it is asked for with other products.
    fn paged(&mut self, matmul: Matmul) -> Result<&Paged, String> {
        if (self.rewritten.as_ref()).is_none_or(|(kept, _)| *kept != matmul) {
            let path = self.graph;
            let bytes = fs::read(path).map_err(|error| failed(path, error).to_string())?;
            let model = ModelProto::decode(bytes.as_slice())
                .map_err(|error| failed(path, error).to_string())?;
            self.rewritten = Some((matmul, paging::page_for(&model, matmul)));
        }
        match self.rewritten.as_ref().map(|(_, outcome)| outcome) {
            Some(Outcome::Paged(paged)) => Ok(paged),
            Some(Outcome::Unmodified(unknown)) => {
                Err(format!("the graph cannot run on paged caches: {unknown}"))
            }
            None => Err("the graph was not read".to_owned()),
        }
    }

    const fn limits(&self) -> Limits {
        Limits {
            max_tokens: self.context,
            kv: self.options.kv,
            kv_type: self.options.kv_type,
        }
    }

    /// Weights and caches for the paged graph.
    fn operators(&mut self, matmul: Matmul) -> Result<Arc<Operators>, String> {
        let (folder, limits) = (self.folder(), self.limits());
        let paged = self.paged(matmul)?;
        let operators = Operators::new(&folder, paged, limits)?;
        self.kernels = Some(operators.isa());
        Ok(Arc::new(operators))
    }

    /// Where the files beside the graph lie.
    fn folder(&self) -> PathBuf {
        self.graph.parent().unwrap_or(Path::new(".")).to_owned()
    }

    fn ort_paged(&mut self, matmul: Matmul) -> Result<Box<dyn Backend>, String> {
        let environment = onnxruntime::environment(library_of(self.search)?)?;
        let operators = self.operators(matmul)?;
        let (folder, threads) = (self.folder(), self.threads.count);
        let paged = self.paged(matmul)?;
        let runtime = OrtRuntime::new(&environment, &folder, paged, &operators, threads)?;
        Ok(Box::new(PagedBackend::new(operators, runtime)))
    }

    /// ONNX Runtime on the paged graph, with the products that the configuration, memory and times speak for.
    ///
    /// Times are taken when ours have passed the self-test: it has brought the weights into memory, and whatever
    /// goes wrong afterwards, there is something that serves.
    fn ort_paged_tested(&mut self, directory: &Directory) -> Result<Tested, String> {
        let mut ours = None;
        let mut verdict = self.verdict(directory, matmul::known)?;
        if verdict.is_none() {
            ours = Some(tested(directory, self.ort_paged(Matmul::Glmd)?)?);
            verdict = self.verdict(directory, |options, subject| {
                Some(matmul::measured(options, subject))
            })?;
        }
        self.matmul = verdict;
        if (self.matmul.as_ref()).is_some_and(|verdict| verdict.matmul == Matmul::OnnxRuntime) {
            let packed = self.ort_paged(Matmul::OnnxRuntime);
            match packed.and_then(|backend| tested(directory, backend)) {
                Ok(tested) => return Ok(tested),
                Err(reason) => {
                    events::packed_refused(&reason);
                    self.matmul = Some(Verdict {
                        matmul: Matmul::Glmd,
                        reason: Reason::Failed(reason),
                    });
                }
            }
        }
        match ours {
            Some(tested) => Ok(tested),
            None => tested(directory, self.ort_paged(Matmul::Glmd)?),
        }
    }

    /// Asks `judge` whose products the model should use.
    fn verdict(
        &mut self,
        directory: &Directory,
        judge: impl FnOnce(&matmul::Options, &Subject<'_>) -> Option<Verdict>,
    ) -> Result<Option<Verdict>, String> {
        let environment = onnxruntime::environment(library_of(self.search)?)?;
        let library = (self.search.library.as_ref()).map_or("", |library| &library.build);
        let (options, limits, threads) = (self.options, self.limits(), self.threads.count);
        let folder = self.folder();
        let subject = Subject {
            env: &environment,
            library,
            digest: &directory.digest,
            folder: &folder,
            paged: self.paged(Matmul::Glmd)?,
            limits,
            threads,
        };
        Ok(judge(&options.matmul, &subject))
    }

    #[cfg(feature = "tract")]
    fn tract_paged(&mut self) -> Result<Box<dyn Backend>, String> {
        use crate::backend::tract_paged::TractRuntime;

        let operators = self.operators(Matmul::Glmd)?;
        let (folder, threads) = (self.folder(), self.threads.count);
        let paged = self.paged(Matmul::Glmd)?;
        let runtime = TractRuntime::new(
            &folder,
            &paged.model,
            &paged.description,
            &operators,
            threads,
        )?;
        Ok(Box::new(PagedBackend::new(operators, runtime)))
    }

    #[cfg(not(feature = "tract"))]
    fn tract_paged(&mut self) -> Result<Box<dyn Backend>, String> {
        Err("this program was built without tract".to_owned())
    }

    fn ort_portable(&mut self, provider: Option<&Provider>) -> Result<Box<dyn Backend>, String> {
        let environment = onnxruntime::environment(library_of(self.search)?)?;
        self.kernels = None;
        let options = portable::Options {
            provider: provider.cloned(),
            threads: self.threads.count,
            max_tokens: self.context,
            kv: self.options.kv,
        };
        let told = |error| match error {
            // Whoever reads it is told the backend's name beside it.
            BackendError::Runtime { reason, .. } => reason,
            other => other.to_string(),
        };
        if FixedShapes::is_in(&self.folder()) {
            let backend = FixedShapes::open(&environment, self.graph, &options).map_err(told)?;
            self.placement = backend.placement().cloned();
            return Ok(Box::new(backend));
        }
        let backend = Portable::open(&environment, self.graph, options).map_err(told)?;
        self.placement = backend.placement().cloned();
        Ok(Box::new(backend))
    }
}
