//! The text around the blanks: where the markers are, and the text with the answers in their place.

use crate::tokenizer::MaskKind;

/// A part of a text with markers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Segment<'a> {
    /// Text between markers.
    Text(&'a str),
    /// A marker.
    Mask(MaskKind),
}

/// Cuts a text at its markers `[MASK]`, `[sMASK]` and `[gMASK]`. Empty text is left out.
#[must_use]
pub fn segments(text: &str) -> Vec<Segment<'_>> {
    let mut segments = Vec::new();
    let mut rest = text;
    while let Some((at, kind)) = next_marker(rest) {
        segments.extend((at > 0).then(|| Segment::Text(&rest[..at])));
        segments.push(Segment::Mask(kind));
        rest = &rest[at + kind.marker().len()..];
    }
    segments.extend((!rest.is_empty()).then_some(Segment::Text(rest)));
    segments
}

fn next_marker(text: &str) -> Option<(usize, MaskKind)> {
    MaskKind::ALL
        .into_iter()
        .filter_map(|kind| Some((text.find(kind.marker())?, kind)))
        .min_by_key(|(at, _)| *at)
}

/// How an answer meets the text before its marker.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Join {
    /// It begins a word.
    #[default]
    Word,
    /// It goes on inside a word: spaces before the marker go.
    Inside,
}

/// Puts an answer in the place of each marker; markers without an answer stay.
///
/// The spaces around a marker are the author's. Only a space that both the text and the answer
/// bring is written once.
#[must_use]
pub fn fill<'a>(text: &str, answers: impl IntoIterator<Item = (&'a str, Join)>) -> String {
    let mut answers = answers.into_iter();
    let mut out = String::with_capacity(text.len());
    for segment in segments(text) {
        match segment {
            Segment::Text(text) => out.push_str(text),
            Segment::Mask(kind) => match answers.next() {
                None => out.push_str(kind.marker()),
                Some((answer, Join::Inside)) => {
                    out.truncate(out.trim_end_matches(' ').len());
                    out.push_str(answer);
                }
                Some((answer, Join::Word)) => {
                    let spaced = out.is_empty() || out.ends_with(char::is_whitespace);
                    out.push_str(match spaced {
                        true => answer.trim_start_matches(' '),
                        false => answer,
                    });
                }
            },
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn markers_are_found_in_order() {
        assert_eq!(
            segments("[gMASK]a [MASK][sMASK] b"),
            [
                Segment::Mask(MaskKind::Document),
                Segment::Text("a "),
                Segment::Mask(MaskKind::Span),
                Segment::Mask(MaskKind::Sentence),
                Segment::Text(" b"),
            ]
        );
        assert_eq!(segments(""), []);
        assert_eq!(segments("[mask]"), [Segment::Text("[mask]")]);
    }

    #[test]
    fn answers_take_the_place_of_their_markers() {
        let word = |s| (s, Join::Word);
        assert_eq!(
            fill("The [MASK] is [MASK].", [word(" lamp"), word("off")]),
            "The lamp is off."
        );
        assert_eq!(fill("It was[MASK].", [word(" great")]), "It was great.");
        assert_eq!(fill("[MASK] x", [word(" a")]), "a x");
        assert_eq!(
            fill("the lamp [MASK] off", [("s", Join::Inside)]),
            "the lamps off"
        );
        assert_eq!(fill("[MASK] [MASK]", [word("a")]), "a [MASK]");
        assert_eq!(fill("[MASK]", [word("[MASK]")]), "[MASK]");
    }
}
