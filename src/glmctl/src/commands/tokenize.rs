//! `glmctl tokenize`: how the model reads a text.

use clap::Args;
use glm_wire::tokenize::{TokenizeRequest, TokenizeResponse};

use crate::client::Client;
use crate::failure::Result;
use crate::options::Output;
use crate::{lines, print};

/// Show how the model reads a text: ids, positions and pieces
#[derive(Debug, Args)]
pub struct Tokenize {
    /// The text; `-` reads standard input
    text: Option<String>,
}

impl Tokenize {
    /// Runs the command.
    pub async fn run(&self, client: &Client, output: Output) -> Result<()> {
        let request = TokenizeRequest {
            text: lines::text(self.text.as_deref())?,
        };
        let answer: TokenizeResponse = client.ask("/v1/tokenize", &request).await?;
        match output {
            Output::Json => print::json(&answer),
            Output::Text => print::text(&table(&answer)),
        }
    }
}

/// One token a line: index, id, positions, piece; `|` marks Part A, whose tokens all see each other.
fn table(answer: &TokenizeResponse) -> String {
    let mut text = String::new();
    for (index, id) in answer.ids.iter().enumerate() {
        let positions: Vec<String> = answer
            .positions
            .get(index)
            .into_iter()
            .flatten()
            .map(u32::to_string)
            .collect();
        let side = if index < answer.bidirectional {
            '|'
        } else {
            ' '
        };
        let piece = answer.pieces.get(index).map_or("", String::as_str);
        text.push_str(&format!(
            "{side}{index:>5} {id:>7}  {:<9} {piece:?}\n",
            positions.join(",")
        ));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn part_a_is_marked() {
        let answer = TokenizeResponse {
            ids: vec![7, 8],
            positions: vec![vec![0, 0], vec![1, 1]],
            pieces: vec!["a".to_owned(), " b".to_owned()],
            bidirectional: 1,
        };
        let expected = "|    0       7  0,0       \"a\"\n     1       8  1,1       \" b\"\n";
        assert_eq!(table(&answer), expected);
    }
}
