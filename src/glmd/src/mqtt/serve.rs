//! The daemon's service as what answers over MQTT.

use glm_wire::error::ErrorDetail;
use serde_json::{Value, json};

use super::session::{Answering, Ask};
use crate::service::{Caller, Reply, Service, Transport};

/// Version of the topics and bodies, so that a client can tell whether it understands a node.
const PROTOCOL: u32 = 1;

impl Answering for Service {
    async fn answer(&self, ask: Ask) -> Result<Vec<u8>, ErrorDetail> {
        let caller = Caller {
            client: ask.client,
            transport: Transport::Mqtt,
        };
        let prepared = self.prepare(ask.op, ask.body, &caller).await?;
        match self.run(prepared, &caller).await? {
            Reply::Whole(document) => Ok(document),
            Reply::Stream(mut stream) => {
                while let Some(piece) = stream.next().await {
                    let piece = piece?;
                    if let Some(pieces) = &ask.pieces {
                        pieces.send(piece).await;
                    }
                }
                stream.all()
            }
        }
    }

    fn info(&self) -> Value {
        let status = self.status();
        json!({
            "version": status.version, "protocol": PROTOCOL, "model": status.model,
            "limits": {"token_budget": status.batch.token_budget_max},
        })
    }

    fn stats(&self) -> Value {
        let mut status = json!(self.status());
        if let Value::Object(fields) = &mut status {
            // `info` says what is loaded; who asks what is nobody else's business.
            for private in ["model", "running", "version"] {
                fields.remove(private);
            }
        }
        status
    }
}
