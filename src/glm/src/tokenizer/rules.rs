//! Text rules that a family's own code applies around the vocabulary.
//!
//! `tokenizer.json` cannot carry them, so the exporter writes the rule's name
//! into the manifest beside it.

use std::borrow::Cow;

use serde::{Deserialize, Serialize};

/// Symbol that stands for a line feed.
const NEWLINE: &str = "<n>";
/// Symbol that stands for a tab.
const TAB: &str = "<|tab|>";
/// Longest run of spaces that has a symbol of its own.
const LONGEST_BLANK: usize = 80;

/// What happens to text before encoding and after decoding.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "kind")]
pub enum TextRules {
    /// Nothing.
    #[default]
    None,
    /// A line feed is the symbol `<n>`: the Chinese GLM vocabulary, to which it is a plain space otherwise.
    LineSymbol,
    /// ChatGLM-6B: symbols for line feed, tab and runs of 2 to 80 spaces.
    #[serde(rename = "chatglm")]
    ChatGlm {
        /// Added to every id of the vocabulary file: 0, or 20000 in the first
        /// release, whose first ids were image codes.
        #[serde(default)]
        id_offset: u32,
    },
}

impl TextRules {
    /// What the ids of the vocabulary file are shifted by.
    pub(super) const fn id_offset(self) -> u32 {
        match self {
            Self::ChatGlm { id_offset } => id_offset,
            Self::None | Self::LineSymbol => 0,
        }
    }

    /// Text as the vocabulary expects it.
    pub(super) fn before(self, text: &str) -> Cow<'_, str> {
        match self {
            Self::None => Cow::Borrowed(text),
            Self::LineSymbol => Cow::Owned(text.replace('\n', NEWLINE)),
            Self::ChatGlm { .. } => Cow::Owned(symbols(text)),
        }
    }

    /// The text that a symbol stands for, if it is one.
    pub(super) fn after(self, piece: &str) -> Option<String> {
        match (self, piece) {
            (Self::None, _) => None,
            (_, NEWLINE) => Some("\n".to_owned()),
            (Self::ChatGlm { .. }, TAB) => Some("\t".to_owned()),
            (Self::ChatGlm { .. }, _) => {
                let count = piece.strip_prefix("<|blank_")?.strip_suffix("|>")?;
                let count: usize = count.parse().ok()?;
                (2..=LONGEST_BLANK)
                    .contains(&count)
                    .then(|| " ".repeat(count))
            }
            (Self::LineSymbol, _) => None,
        }
    }
}

/// Runs are cut from the left into 80s and a rest; a single space stays.
fn symbols(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut spaces = 0usize;
    let close = |out: &mut String, spaces: &mut usize| {
        while *spaces > 0 {
            let run = (*spaces).min(LONGEST_BLANK);
            match run {
                1 => out.push(' '),
                run => out.push_str(&format!("<|blank_{run}|>")),
            }
            *spaces -= run;
        }
    };
    for c in text.chars() {
        if c == ' ' {
            spaces += 1;
            continue;
        }
        close(&mut out, &mut spaces);
        match c {
            '\n' => out.push_str(NEWLINE),
            '\t' => out.push_str(TAB),
            c => out.push(c),
        }
    }
    close(&mut out, &mut spaces);
    out
}

/// What ChatGLM-6B's own code does to a finished answer: trims it, fills in
/// the year of its training data, and widens ASCII punctuation that touches a
/// Chinese character.
#[must_use]
pub fn polish_chatglm(answer: &str) -> String {
    let text = answer.trim().replace("[[训练时间]]", "2023年");
    let chars: Vec<char> = text.chars().collect();
    let han = |i: Option<usize>| {
        i.and_then(|i| chars.get(i))
            .is_some_and(|c| ('\u{4e00}'..='\u{9fff}').contains(c))
    };
    let wide = |c: char| match c {
        ',' => '，',
        '!' => '！',
        ':' => '：',
        ';' => '；',
        '?' => '？',
        c => c,
    };
    chars
        .iter()
        .enumerate()
        .map(|(i, &c)| {
            if han(i.checked_sub(1)) || han(Some(i + 1)) {
                wide(c)
            } else {
                c
            }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_of_spaces_become_symbols() {
        assert_eq!(symbols("a b  c"), "a b<|blank_2|>c");
        assert_eq!(symbols("\n    x\t#"), "<n><|blank_4|>x<|tab|>#");
        assert_eq!(symbols(&" ".repeat(81)), "<|blank_80|> ");
        assert_eq!(symbols(&" ".repeat(82)), "<|blank_80|><|blank_2|>");
    }

    #[test]
    fn symbols_come_back_as_text() {
        let rules = TextRules::ChatGlm { id_offset: 0 };
        assert_eq!(rules.after("<n>").as_deref(), Some("\n"));
        assert_eq!(rules.after("<|tab|>").as_deref(), Some("\t"));
        assert_eq!(rules.after("<|blank_3|>").as_deref(), Some("   "));
        for other in ["<|blank_1|>", "<|blank_81|>", "<|blank_x|>", "word"] {
            assert_eq!(rules.after(other), None);
        }
        assert_eq!(TextRules::None.after("<n>"), None);
        assert_eq!(TextRules::LineSymbol.after("<|tab|>"), None);
    }

    #[test]
    fn only_punctuation_beside_chinese_is_widened() {
        assert_eq!(
            polish_chatglm("  你好,world! a,b 吗?"),
            "你好，world! a,b 吗？"
        );
        assert_eq!(polish_chatglm("[[训练时间]]:x"), "2023年：x");
    }

    #[test]
    fn manifest_form_is_stable() {
        let rules = TextRules::ChatGlm { id_offset: 20_000 };
        let text = serde_json::to_string(&rules).unwrap();
        assert_eq!(text, r#"{"kind":"chatglm","id_offset":20000}"#);
        assert_eq!(serde_json::from_str::<TextRules>(&text).unwrap(), rules);
        let none: TextRules = serde_json::from_str(r#"{"kind":"none"}"#).unwrap();
        assert_eq!(none, TextRules::None);
    }
}
