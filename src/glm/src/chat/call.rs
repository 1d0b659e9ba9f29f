//! ChatGLM3's tool calls, which it writes as a line of Python: `tool_call(city='Berlin', days=2)`.

use serde_json::{Map, Value};

/// A call as ChatGLM3 writes it.
pub(super) fn to_python(arguments: &Value) -> String {
    let mut out = String::from("```python\ntool_call(");
    if let Value::Object(arguments) = arguments {
        for (index, (name, value)) in arguments.iter().enumerate() {
            if index > 0 {
                out.push_str(", ");
            }
            out.push_str(name);
            out.push('=');
            literal(&mut out, value);
        }
    }
    out.push_str(")\n```");
    out
}

fn literal(out: &mut String, value: &Value) {
    match value {
        Value::Null => out.push_str("None"),
        Value::Bool(true) => out.push_str("True"),
        Value::Bool(false) => out.push_str("False"),
        Value::Number(n) => out.push_str(&n.to_string()),
        Value::String(s) => quote(out, s),
        Value::Array(items) => {
            out.push('[');
            for (index, item) in items.iter().enumerate() {
                out.push_str(if index > 0 { ", " } else { "" });
                literal(out, item);
            }
            out.push(']');
        }
        Value::Object(entries) => {
            out.push('{');
            for (index, (key, value)) in entries.iter().enumerate() {
                out.push_str(if index > 0 { ", " } else { "" });
                quote(out, key);
                out.push_str(": ");
                literal(out, value);
            }
            out.push('}');
        }
    }
}

/// A string literal as Python's `repr` writes it.
fn quote(out: &mut String, text: &str) {
    let mark = match text.contains('\'') && !text.contains('"') {
        true => '"',
        false => '\'',
    };
    out.push(mark);
    for c in text.chars() {
        match c {
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            c if c == mark => {
                out.push('\\');
                out.push(c);
            }
            c => out.push(c),
        }
    }
    out.push(mark);
}

/// Deepest nesting of lists and dictionaries that is read.
const MAX_DEPTH: usize = 32;

/// The arguments of the first `tool_call(...)`; `None` when there is none or it is not made of
/// literals alone. Nothing is ever evaluated.
pub(super) fn from_python(text: &str) -> Option<Value> {
    let start = text.find("tool_call(")? + "tool_call(".len();
    let mut reader = Reader {
        rest: &text[start..],
    };
    let mut arguments = Map::new();
    loop {
        if reader.take(")") {
            return Some(Value::Object(arguments));
        }
        let name = reader.name()?;
        reader.take("=").then_some(())?;
        arguments.insert(name, reader.value(0)?);
        if !reader.take(",") {
            reader.take(")").then_some(())?;
            return Some(Value::Object(arguments));
        }
    }
}

/// Reads Python literals.
struct Reader<'a> {
    rest: &'a str,
}

impl Reader<'_> {
    fn take(&mut self, token: &str) -> bool {
        self.rest = self.rest.trim_start();
        match self.rest.strip_prefix(token) {
            Some(rest) => {
                self.rest = rest;
                true
            }
            None => false,
        }
    }

    fn name(&mut self) -> Option<String> {
        self.rest = self.rest.trim_start();
        let end = (self.rest)
            .find(|c: char| !c.is_alphanumeric() && c != '_')
            .unwrap_or(self.rest.len());
        let (name, rest) = self.rest.split_at(end);
        self.rest = rest;
        (!name.is_empty()).then(|| name.to_owned())
    }

    fn value(&mut self, depth: usize) -> Option<Value> {
        if depth > MAX_DEPTH {
            return None;
        }
        self.rest = self.rest.trim_start();
        match self.rest.chars().next()? {
            '\'' | '"' => self.string().map(Value::String),
            '[' | '(' => {
                let close = if self.take("[") { "]" } else { ")" };
                self.take("(");
                let mut items = Vec::new();
                while !self.take(close) {
                    items.push(self.value(depth + 1)?);
                    if !self.take(",") {
                        self.take(close).then_some(())?;
                        break;
                    }
                }
                Some(Value::Array(items))
            }
            '{' => {
                self.take("{");
                let mut entries = Map::new();
                while !self.take("}") {
                    self.rest = self.rest.trim_start();
                    let key = self.string()?;
                    self.take(":").then_some(())?;
                    entries.insert(key, self.value(depth + 1)?);
                    if !self.take(",") {
                        self.take("}").then_some(())?;
                        break;
                    }
                }
                Some(Value::Object(entries))
            }
            c if c.is_ascii_digit() || c == '-' => self.number(),
            _ => match self.name()?.as_str() {
                "None" | "null" => Some(Value::Null),
                "True" | "true" => Some(Value::Bool(true)),
                "False" | "false" => Some(Value::Bool(false)),
                _ => None,
            },
        }
    }

    fn number(&mut self) -> Option<Value> {
        let end = (self.rest)
            .find(|c: char| !c.is_ascii_alphanumeric() && !matches!(c, '+' | '-' | '.'))
            .unwrap_or(self.rest.len());
        let (number, rest) = self.rest.split_at(end);
        self.rest = rest;
        serde_json::from_str::<serde_json::Number>(number)
            .ok()
            .map(Value::Number)
    }

    fn string(&mut self) -> Option<String> {
        let mark = self
            .rest
            .chars()
            .next()
            .filter(|c| matches!(c, '\'' | '"'))?;
        let mut text = String::new();
        let mut chars = self.rest[1..].char_indices();
        while let Some((at, c)) = chars.next() {
            match c {
                c if c == mark => {
                    self.rest = &self.rest[1 + at + 1..];
                    return Some(text);
                }
                '\\' => match chars.next()?.1 {
                    'n' => text.push('\n'),
                    't' => text.push('\t'),
                    'r' => text.push('\r'),
                    c @ ('\\' | '\'' | '"') => text.push(c),
                    c => {
                        text.push('\\');
                        text.push(c);
                    }
                },
                c => text.push(c),
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn literals_survive_the_way_through_python() {
        let arguments = json!({
            "city": "It's \"here\"\\", "days": -2, "share": 1.5, "on": true, "off": null,
            "list": [1, ["a"], {}], "map": {"k\n": false}
        });
        assert_eq!(from_python(&to_python(&arguments)), Some(arguments));
        assert_eq!(from_python(&to_python(&json!({}))), Some(json!({})));
    }

    #[test]
    fn only_literals_are_read() {
        for code in [
            "tool_call(a=open('x'))",
            "tool_call(a=1 + 1)",
            "tool_call(a=",
            "tool_call('x')",
            "print(1)",
            "tool_call(a=[1",
            "tool_call(a='x",
        ] {
            assert_eq!(from_python(code), None, "{code}");
        }
        let deep = format!("tool_call(a={}", "[".repeat(10_000));
        assert_eq!(from_python(&deep), None);
    }
}
