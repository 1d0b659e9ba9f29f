//! What the fuzz target of request bodies does with its bytes.

use std::fmt::Debug;

use glm_wire::chat::ChatRequest;
use glm_wire::classify::ClassifyRequest;
use glm_wire::completions::CompletionRequest;
use glm_wire::infill::InfillRequest;
use glm_wire::tokenize::{DetokenizeRequest, TokenizeRequest};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// A body: read whole and written back the same, or refused in a few words.
pub fn request(data: &[u8]) {
    read_or_refuse::<InfillRequest>(data);
    read_or_refuse::<ClassifyRequest>(data);
    read_or_refuse::<CompletionRequest>(data);
    read_or_refuse::<ChatRequest>(data);
    read_or_refuse::<TokenizeRequest>(data);
    read_or_refuse::<DetokenizeRequest>(data);
}

fn read_or_refuse<T: DeserializeOwned + Serialize + PartialEq + Debug>(data: &[u8]) {
    match glm_wire::parse::<T>(data) {
        Ok(request) => {
            let written = serde_json::to_vec(&request).expect("plain data");
            let again = glm_wire::parse::<T>(&written);
            assert_eq!(again.expect("our own output"), request);
        }
        Err(bad) => {
            assert!(!bad.message.is_empty());
            // However long the name of a wrong field is, the answer is not.
            assert!(bad.message.len() <= 600, "{bad}");
            assert!(bad.field.is_none_or(|field| field.len() <= 200));
        }
    }
}
