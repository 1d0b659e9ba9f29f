//! What operations answer, as JSON on the wire.

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::Ordering;
    use std::time::Duration;

    use serde_json::json;

    use crate::support::{Rig, Script, post, wait};

    #[test]
    fn an_infill_tells_each_blank_and_what_it_cost() {
        let rig = Rig::usual();
        let answer = rig
            .post(
                "/v1/infill",
                r#"{"text":"the [MASK] in the [MASK]","seed":1}"#,
            )
            .json();
        let blanks = answer["blanks"].as_array().expect("blanks");
        assert_eq!(blanks.len(), 2);
        for (index, blank) in blanks.iter().enumerate() {
            assert_eq!(blank["index"], index);
            assert!(blank["logprob"].as_f64() < Some(0.0));
            assert_eq!(blank["finish_reason"], "stop");
        }
        assert!(answer["id"].as_str().expect("an id").starts_with("req-"));
        let usage = &answer["usage"];
        let sum = usage["prompt_tokens"]
            .as_u64()
            .zip(usage["completion_tokens"].as_u64());
        assert_eq!(usage["total_tokens"].as_u64(), sum.map(|(a, b)| a + b));
        assert!(answer["timing"]["total_ms"].as_f64() > Some(0.0));
        assert!(answer.get("choices").is_none(), "one answer is told once");
        let same = rig
            .post(
                "/v1/infill",
                r#"{"text":"the [MASK] in the [MASK]","seed":1}"#,
            )
            .json();
        assert_eq!(same["text"], answer["text"]);
    }

    #[test]
    fn a_classification_is_a_distribution() {
        let rig = Rig::usual();
        let labels = json!({"a": ["kitchen"], "b": ["garage", "garden"]});
        let pattern = "{text} is in the [MASK].";
        let one = json!({"text": "the lamp", "pattern": pattern, "labels": labels});
        let one = rig.post("/v1/classify", &one.to_string()).json();
        let scores = one["scores"].as_object().expect("scores");
        let sum: f64 = scores.values().filter_map(serde_json::Value::as_f64).sum();
        assert!((sum - 1.0).abs() < 1e-9, "{one}");
        assert!(one.get("results").is_none());
        let many = json!({"texts": ["the lamp", "the pump"], "pattern": pattern, "labels": labels});
        let many = rig.post("/v1/classify", &many.to_string()).json();
        assert_eq!(
            many["results"][0]["scores"], one["scores"],
            "texts do not disturb each other"
        );
        assert_eq!(many["results"].as_array().map(Vec::len), Some(2));
        let task = rig
            .post("/v1/classify", r#"{"text":"the lamp","task":"room"}"#)
            .json();
        assert!(["kitchen", "garage"].contains(&task["label"].as_str().expect("a label")));
    }

    #[test]
    fn typed_questions_get_typed_answers() {
        let rig = Rig::usual();
        let body = json!({
            "model": "jev-latest",
            "state": {"lamp": "on", "note": "[MASK]"},
            "questions": {
                "room": {"type": "choice", "criteria": {"kitchen": null, "garage": "where the car is"}},
                "light": {"type": "score", "instructions": "The room is", "criteria": ["off", "garden", "lamp"]},
            },
        });
        let answer = rig.post("/v1/systemone", &body.to_string()).json();
        let answers = &answer["answers"];
        let room = &answers["room"];
        assert!(
            room["probabilities"][room["choice"].as_str().expect("a choice")].as_f64() >= Some(0.5)
        );
        let light = answers["light"]["probabilities"]
            .as_object()
            .expect("levels");
        let expected: f64 = (light.iter())
            .filter_map(|(level, p)| Some(level.parse::<f64>().ok()? * p.as_f64()?))
            .sum();
        let score = answers["light"]["score"].as_f64().expect("a score");
        assert!((score - expected).abs() < 1e-9, "{answer}");
        assert!(answer["usage"]["input_tokens"].as_u64() > Some(0));
        assert_eq!(answer["usage"]["output_tokens"], 0);
        assert_ne!(
            answer["model"], "jev-latest",
            "the model that answers is named"
        );
        // One by one they get the same answers.
        let mut one = body.clone();
        one["questions"] = json!({"room": body["questions"]["room"]});
        let one = rig.post("/v1/systemone", &one.to_string()).json();
        assert_eq!(one["answers"]["room"], *room);
    }

    #[test]
    fn mistakes_of_meaning_name_their_field() {
        let rig = Rig::usual();
        let cases = [
            ("/v1/classify", r#"{"task":"room"}"#, "text"),
            (
                "/v1/classify",
                r#"{"text":"a","texts":["b"],"task":"room"}"#,
                "texts",
            ),
            ("/v1/classify", r#"{"text":"a","task":"mood"}"#, "task"),
            (
                "/v1/classify",
                r#"{"text":"a","pattern":"{text} [MASK]"}"#,
                "labels",
            ),
            ("/v1/infill", r#"{"text":"nothing to fill"}"#, "text"),
            ("/v1/detokenize", r#"{"ids":[9999]}"#, "ids"),
            (
                "/v1/systemone",
                r#"{"state":"a","questions":{}}"#,
                "questions",
            ),
            (
                "/v1/systemone",
                r#"{"state":"a","questions":{"q":{"type":"choice","criteria":{"only":null}}}}"#,
                "questions",
            ),
            (
                "/v1/systemone",
                r#"{"state":"a","questions":{"q":{"type":"choice","instructions":"[MASK]?","criteria":{"off":null,"lamp":null}}}}"#,
                "questions",
            ),
        ];
        for (path, body, field) in cases {
            let response = rig.post(path, body);
            assert_eq!(response.status, 400, "{body}: {}", response.json());
            assert_eq!(response.json()["error"]["param"], field, "{body}");
        }
        let other = rig.post("/v1/completions", r#"{"prompt":"a","model":"gpt"}"#);
        assert_eq!(
            (other.status, other.code().as_str()),
            (404, "model_not_found")
        );
        let long = json!({"text": format!("[MASK] {}", "lamp ".repeat(5000))});
        let long = rig.post("/v1/infill", &long.to_string());
        assert_eq!(long.status, 413, "{}", long.json());
        let chat = rig.post(
            "/v1/chat/completions",
            r#"{"messages":[{"role":"user","content":"hi"}]}"#,
        );
        assert_eq!(chat.status, 400, "this family does not chat");
    }

    #[test]
    fn an_answer_keeps_to_its_form() {
        let rig = Rig::usual();
        let choice = json!({
            "text": "the lamp in the [MASK]",
            "response_format": {"type": "choice", "choices": ["garden", "cellar"]},
        });
        let answer = rig.post("/v1/infill", &choice.to_string()).json();
        let text = answer["blanks"][0]["text"].as_str().expect("a blank");
        assert!(["garden", "cellar"].contains(&text), "{text}");
        let schema = json!({
            "prompt": "the lamp",
            "response_format": {"type": "json_schema", "json_schema": {"schema": {
                "type": "string", "not": {"const": "lamp"},
            }}},
        });
        let refused = rig.post("/v1/completions", &schema.to_string());
        assert_eq!(refused.status, 400, "{}", refused.json());
        let message = refused.json()["error"]["message"].to_string();
        assert!(message.contains("not"), "{message}");
    }

    #[test]
    fn of_waiting_requests_with_a_key_the_latest_is_answered() {
        let script = Arc::new(Script::default());
        script.endless.store(true, Ordering::SeqCst);
        *script.step_time.lock().expect("unused") = Duration::from_millis(2);
        let rig = Rig::scripted(|config| config.engine.sequences = 1, script);
        let mut busy = rig.connect();
        busy.send(post(
            "/v1/infill",
            r#"{"text":"the [MASK]","max_tokens":4000}"#,
        ));
        wait(|| rig.sequences() == 1);
        let body = r#"{"text":"the [MASK]","coalesce_key":"lamp","max_tokens":1}"#;
        let mut older = rig.connect();
        older.send(post("/v1/infill", body));
        wait(|| rig.get("/v1/status").json()["requests"]["queued"] == 1);
        let mut newer = rig.connect();
        newer.send(post("/v1/infill", body));
        let replaced = older.response();
        assert_eq!(
            (replaced.status, replaced.code().as_str()),
            (409, "superseded")
        );
        drop(busy);
        assert_eq!(newer.response().status, 200);
    }

    #[test]
    fn a_full_queue_says_when_to_come_back() {
        let script = Arc::new(Script::default());
        script.endless.store(true, Ordering::SeqCst);
        *script.step_time.lock().expect("unused") = Duration::from_millis(2);
        let rig = Rig::scripted(
            |config| {
                config.engine.sequences = 1;
                config.queue.requests = 1;
            },
            script,
        );
        let body = r#"{"text":"the [MASK]","max_tokens":4000}"#;
        let mut wires = Vec::new();
        for count in 0..2 {
            let mut wire = rig.connect();
            wire.send(post("/v1/infill", body));
            wait(|| match count {
                0 => rig.sequences() == 1,
                _ => rig.get("/v1/status").json()["requests"]["queued"] == 1,
            });
            wires.push(wire);
        }
        let refused = rig.post("/v1/infill", body);
        assert_eq!(
            (refused.status, refused.code().as_str()),
            (429, "overloaded")
        );
        let ms = refused.json()["error"]["retry_after_ms"]
            .as_u64()
            .expect("a time");
        let seconds: u64 = refused
            .header("retry-after")
            .expect("a header")
            .parse()
            .expect("a number");
        assert_eq!(seconds, ms.div_ceil(1000));
        let text = String::from_utf8(rig.get("/metrics").body).expect("text");
        assert!(
            text.contains(r#"glmd_admission_rejected_total{reason="overloaded"} 1"#),
            "{text}"
        );
    }

    #[test]
    fn text_becomes_ids_and_ids_text() {
        let rig = Rig::usual();
        let told = rig
            .post("/v1/tokenize", r#"{"text":"the lamp in the [MASK]"}"#)
            .json();
        let ids = told["ids"].as_array().expect("ids");
        assert_eq!(told["pieces"].as_array().map(Vec::len), Some(ids.len()));
        let positions = told["positions"].as_array().expect("positions");
        assert!(
            positions
                .iter()
                .all(|p| p.as_array().map(Vec::len) == Some(2))
        );
        assert!(told["bidirectional"].as_u64() > Some(0));
        let back = rig
            .post("/v1/detokenize", &json!({"ids": ids}).to_string())
            .json();
        assert!(
            back["text"]
                .as_str()
                .expect("text")
                .contains("the lamp in the"),
            "{back}"
        );
    }
}
