//! Text to ids and back.

use glm::TokenId;
use glm_engine::ops::Operations;
use glm_wire::error::ErrorDetail;
use glm_wire::tokenize::{
    DetokenizeRequest, DetokenizeResponse, TokenizeRequest, TokenizeResponse,
};

use super::{failure, json};

/// Ids, positions and pieces of a text, as the model would read it.
pub(super) fn tokenize(body: &[u8], operations: &Operations) -> Result<Vec<u8>, ErrorDetail> {
    let request: TokenizeRequest = glm_wire::parse(body)?;
    let tokenized = operations
        .tokenize(&request.text)
        .map_err(|e| failure::detail(&e))?;
    let prompt = &tokenized.prompt;
    let two = operations.model().spec.two_dimensional();
    let positions = prompt.positions().map(|p| match two {
        true => vec![p.first, p.second],
        false => vec![p.first],
    });
    json(&TokenizeResponse {
        ids: prompt.ids().map(|id| id.0).collect(),
        positions: positions.collect(),
        pieces: tokenized.pieces,
        bidirectional: prompt.bidirectional,
    })
}

/// The text of ids.
pub(super) fn detokenize(body: &[u8], operations: &Operations) -> Result<Vec<u8>, ErrorDetail> {
    let request: DetokenizeRequest = glm_wire::parse(body)?;
    let model = operations.model();
    let size = model.capabilities.vocabulary;
    if let Some(id) = request.ids.iter().find(|id| **id as usize >= size) {
        return Err(failure::bad_input(
            "ids",
            format!("`ids`: {id} is not an id, the vocabulary has {size}"),
        ));
    }
    let ids: Vec<TokenId> = request.ids.into_iter().map(TokenId).collect();
    json(&DetokenizeResponse {
        text: model.tokenizer.decode(&ids),
    })
}
