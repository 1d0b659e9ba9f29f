//! The daemon as what answers over MQTT.

use glm_wire::error::ErrorDetail;
use serde_json::{Value, json};

use super::session::{Answering, Ask};
use crate::operations::{Operation, Operations};
use crate::service::{Caller, Reply, Service, Transport};

/// Version of the topics and bodies, so that a client can tell whether it understands a node.
const PROTOCOL: u32 = 1;

/// The daemon: what asks the model, and what operates it.
#[derive(Clone, Debug)]
pub struct Served {
    service: Service,
    operations: Operations,
}

impl Served {
    /// Answers with `service`, obeys with `operations`.
    #[must_use]
    pub const fn new(service: Service, operations: Operations) -> Self {
        Self {
            service,
            operations,
        }
    }
}

impl Answering for Served {
    async fn answer(&self, ask: Ask) -> Result<Vec<u8>, ErrorDetail> {
        let caller = Caller {
            client: ask.client,
            transport: Transport::Mqtt,
        };
        let prepared = self.service.prepare(ask.op, ask.body, &caller).await?;
        match self.service.run(prepared, &caller).await? {
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

    async fn operate(&self, operation: Operation) -> Result<Vec<u8>, ErrorDetail> {
        let done = match operation {
            Operation::Reload => json!(self.operations.reload().await?),
            Operation::Unload => {
                self.operations.unload().await?;
                json!({"status": "unloaded"})
            }
        };
        Ok(done.to_string().into_bytes())
    }

    fn info(&self) -> Value {
        let status = self.service.status();
        json!({
            "version": status.version, "protocol": PROTOCOL, "model": status.model,
            "limits": {"token_budget": status.batch.token_budget_max},
        })
    }

    fn stats(&self) -> Value {
        let mut status = json!(self.service.status());
        if let Value::Object(fields) = &mut status {
            // `info` says what is loaded; who asks what is nobody else's business.
            for private in ["model", "running", "version"] {
                fields.remove(private);
            }
        }
        status
    }
}
