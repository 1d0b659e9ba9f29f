//! Names: what can be asked, over what, and by whom.

/// An operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Op {
    /// Fill blanks.
    Infill,
    /// Choose among labels.
    Classify,
    /// Answer typed questions.
    SystemOne,
    /// Continue a text.
    Completions,
    /// Answer a conversation.
    Chat,
    /// Text to ids.
    Tokenize,
    /// Ids to text.
    Detokenize,
}

impl Op {
    /// Name in figures and log lines.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Infill => "infill",
            Self::Classify => "classify",
            Self::SystemOne => "systemone",
            Self::Completions => "completions",
            Self::Chat => "chat",
            Self::Tokenize => "tokenize",
            Self::Detokenize => "detokenize",
        }
    }
}

/// How a request came.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Transport {
    /// HTTP on the Unix socket.
    Unix,
    /// HTTP on TCP.
    Tcp,
    /// MQTT.
    Mqtt,
}

impl Transport {
    /// Name in figures and log lines.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Unix => "unix",
            Self::Tcp => "tcp",
            Self::Mqtt => "mqtt",
        }
    }
}

/// Who asks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Caller {
    /// Name under which the requests are listed; requests with the same `coalesce_key` replace each other within it.
    pub client: Box<str>,
    /// How the request came.
    pub transport: Transport,
}
