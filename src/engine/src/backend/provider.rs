//! Execution providers of ONNX Runtime: what runs a graph on an NPU or GPU.
//!
//! ONNX Runtime gives nodes that a provider does not take to the CPU, and a
//! provider that does not start takes none: both without an error. So nothing
//! is believed here. A session records where each node went ([`Placement`]),
//! and one that put nodes elsewhere than asked is refused unless the
//! configuration allows it; what then runs where is told in `status`.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use ort::environment::Environment;
use ort::ep::{ArbitrarilyConfigurableExecutionProvider as _, CUDA, TensorRT};
use ort::session::Session;
use ort::session::builder::SessionBuilder;

use super::assignment::{self, assignment};

/// ONNX Runtime's name of its own kernels.
const CPU: &str = "CPUExecutionProvider";
/// Without it QNN leaves the conversions at both ends of a graph of integers to the CPU.
const ALL_OF_THE_GRAPH: (&str, &str) = ("offload_graph_io_quantization", "0");
/// Operator types that a refusal names; more would not help the reader.
const NAMED: usize = 4;

/// A provider that can be asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ProviderKind {
    /// Qualcomm's NPU, by its plug-in library.
    Qnn,
    /// Intel's `OpenVINO`, by its plug-in library.
    OpenVino,
    /// NVIDIA's GPUs, built into a libonnxruntime of their own.
    Cuda,
    /// NVIDIA's `TensorRT`, built into the same.
    TensorRt,
}

impl ProviderKind {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Qnn, Self::OpenVino, Self::Cuda, Self::TensorRt];

    /// Name in the configuration and in `status`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Qnn => "qnn",
            Self::OpenVino => "openvino",
            Self::Cuda => "cuda",
            Self::TensorRt => "tensorrt",
        }
    }

    /// Name that ONNX Runtime has for it.
    #[must_use]
    pub const fn official(self) -> &'static str {
        match self {
            Self::Qnn => "QNNExecutionProvider",
            Self::OpenVino => "OpenVINOExecutionProvider",
            Self::Cuda => "CUDAExecutionProvider",
            Self::TensorRt => "TensorrtExecutionProvider",
        }
    }

    /// Whether it comes as a library of its own.
    #[must_use]
    pub const fn is_plugin(self) -> bool {
        matches!(self, Self::Qnn | Self::OpenVino)
    }
}

impl ProviderKind {
    /// Whether what it makes of a graph can be kept for the next start.
    ///
    /// `TensorRT` keeps its engines by options of its own.
    #[must_use]
    pub const fn compiles(self) -> bool {
        matches!(self, Self::Qnn)
    }
}

impl fmt::Display for ProviderKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for ProviderKind {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        Self::ALL
            .into_iter()
            .find(|kind| kind.name() == name)
            .ok_or_else(|| {
                format!(
                    "no execution provider `{name}`; there are qnn, openvino, cuda and tensorrt"
                )
            })
    }
}

/// A provider and how it is to be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Provider {
    /// Which.
    pub kind: ProviderKind,
    /// Library of a plug-in.
    pub library: Option<PathBuf>,
    /// Options by the names that the provider's own documentation has, such as `backend_path`.
    pub options: BTreeMap<String, String>,
    /// Whether nodes that it does not take may run on the CPU.
    pub partial: bool,
    /// Folder that keeps what it compiled, where it [`compiles`](ProviderKind::compiles).
    pub cache: Option<PathBuf>,
}

impl Provider {
    /// Makes a session use this provider first, and record where its nodes go.
    ///
    /// # Errors
    /// What ONNX Runtime says, or that the provider's library or device is not there.
    pub fn apply(
        &self,
        env: &Environment,
        builder: SessionBuilder,
    ) -> Result<SessionBuilder, String> {
        let (key, value) = assignment::RECORD;
        let builder = builder.with_config_entry(key, value).map_err(told)?;
        match self.kind {
            ProviderKind::Qnn | ProviderKind::OpenVino => self.plug_in(env, builder),
            ProviderKind::Cuda => {
                let provider = (self.options.iter()).fold(CUDA::default(), |ep, (key, value)| {
                    ep.with_arbitrary_config(key, value)
                });
                builder
                    .with_execution_providers([provider.build().error_on_failure()])
                    .map_err(told)
            }
            ProviderKind::TensorRt => {
                let provider = (self.options.iter())
                    .fold(TensorRT::default(), |ep, (key, value)| {
                        ep.with_arbitrary_config(key, value)
                    });
                builder
                    .with_execution_providers([provider.build().error_on_failure()])
                    .map_err(told)
            }
        }
    }

    fn plug_in(
        &self,
        env: &Environment,
        builder: SessionBuilder,
    ) -> Result<SessionBuilder, String> {
        let name = self.kind.official();
        let devices = || {
            env.devices()
                .filter(|device| device.ep().is_ok_and(|provider| provider == name))
        };
        // A library is registered once for each process; its devices stay.
        if devices().next().is_none() {
            let library = self.library.as_ref().ok_or_else(|| {
                format!("its library is not named; set `library` of the provider to the plug-in of {name}")
            })?;
            env.register_ep_library(name, library)
                .map_err(|error| format!("{}: {error}", library.display()))?;
        }
        // Without a device, ONNX Runtime would quietly use the CPU.
        if devices().next().is_none() {
            return Err("it finds no device of its kind on this machine".to_owned());
        }
        let mut options = self.options.clone();
        if self.kind == ProviderKind::Qnn {
            let (key, value) = ALL_OF_THE_GRAPH;
            (options.entry(key.to_owned())).or_insert_with(|| value.to_owned());
        }
        let options: Vec<(String, String)> = (options.into_iter())
            .map(|(key, value)| (format!("{name}.{key}"), value))
            .collect();
        builder
            .with_devices(devices(), Some(&options))
            .map_err(told)
    }

    /// Where the nodes of a session went, if that is as asked.
    ///
    /// # Errors
    /// When nodes run on the CPU and may not, and when the library does not tell.
    pub fn judge(&self, session: &Session) -> Result<Placement, String> {
        let nodes = assignment(session)
            .map_err(|error| format!("where its nodes run is not told: {error}"))?;
        let mut placement = Placement {
            provider: self.kind,
            taken: 0,
            elsewhere: BTreeMap::new(),
        };
        for node in nodes {
            if node.provider == self.kind.official() {
                placement.taken += 1;
            } else {
                *placement.elsewhere.entry(node.operator).or_default() += 1;
            }
        }
        placement.accept(self.partial)
    }
}

/// Makes a session use the CPU alone.
///
/// A session that names no device is given those of whatever plug-in this process has loaded.
///
/// # Errors
/// What ONNX Runtime says.
pub fn on_cpu(env: &Environment, builder: SessionBuilder) -> ort::Result<SessionBuilder> {
    let cpu = env
        .devices()
        .filter(|device| device.ep().is_ok_and(|provider| provider == CPU));
    Ok(builder.with_devices(cpu, None)?)
}

/// Where the nodes of a graph run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Placement {
    /// The provider that was asked for.
    pub provider: ProviderKind,
    /// Nodes that it runs.
    pub taken: usize,
    /// Nodes that run on the CPU instead, counted by operator.
    pub elsewhere: BTreeMap<String, usize>,
}

impl Placement {
    /// All nodes.
    #[must_use]
    pub fn nodes(&self) -> usize {
        self.taken + self.left()
    }

    /// Nodes that the provider left to the CPU.
    #[must_use]
    pub fn left(&self) -> usize {
        self.elsewhere.values().sum()
    }

    /// Itself, unless it breaks what was asked.
    ///
    /// # Errors
    /// With the operators that are in the way, when nodes run elsewhere and may not, or all do.
    pub fn accept(self, partial: bool) -> Result<Self, String> {
        if self.elsewhere.is_empty() || (partial && self.taken > 0) {
            return Ok(self);
        }
        let mut others: Vec<_> = self.elsewhere.iter().collect();
        others.sort_by_key(|(_, count)| std::cmp::Reverse(**count));
        let mut names: Vec<String> = others
            .iter()
            .take(NAMED)
            .map(|(operator, count)| format!("{count} {operator}"))
            .collect();
        if others.len() > NAMED {
            names.push("others".to_owned());
        }
        let (taken, nodes) = (self.taken, self.nodes());
        let advice = match (taken, partial) {
            (0, _) => "",
            (_, true) => "",
            (_, false) => "; `partial = true` lets the CPU run them",
        };
        Err(format!(
            "it takes {taken} of {nodes} nodes, the CPU would run the others ({}){advice}",
            names.join(", ")
        ))
    }
}

impl fmt::Display for Placement {
    /// `qnn: 120 of 124 nodes`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (taken, nodes) = (self.taken, self.nodes());
        write!(f, "{}: {taken} of {nodes} nodes", self.provider)
    }
}

fn told(error: impl fmt::Display) -> String {
    error.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn placement(taken: usize, elsewhere: &[(&str, usize)]) -> Placement {
        Placement {
            provider: ProviderKind::Qnn,
            taken,
            elsewhere: (elsewhere.iter())
                .map(|(operator, count)| ((*operator).to_owned(), *count))
                .collect(),
        }
    }

    #[test]
    fn a_whole_graph_is_accepted() {
        assert_eq!(placement(9, &[]).accept(false).unwrap().nodes(), 9);
    }

    #[test]
    fn a_part_is_accepted_when_asked_for() {
        let error = placement(5, &[("Gather", 1), ("Softmax", 3)])
            .accept(false)
            .unwrap_err();
        assert!(error.contains("5 of 9 nodes"), "{error}");
        assert!(error.contains("3 Softmax, 1 Gather"), "{error}");
        assert!(error.contains("partial = true"), "{error}");
        let told = placement(5, &[("Gather", 4)]).accept(true).unwrap();
        assert_eq!(told.to_string(), "qnn: 5 of 9 nodes");
    }

    #[test]
    fn nothing_at_all_is_never_accepted() {
        let error = placement(0, &[("MatMul", 7)]).accept(true).unwrap_err();
        assert!(error.contains("0 of 7 nodes"), "{error}");
        assert!(!error.contains("partial"), "{error}");
    }

    #[test]
    fn names_are_those_of_the_configuration() {
        for kind in ProviderKind::ALL {
            assert_eq!(kind.name().parse::<ProviderKind>().unwrap(), kind);
        }
        assert!("cpu".parse::<ProviderKind>().unwrap_err().contains("qnn"));
    }
}
