//! The figures of a run, as a table and as JSON.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use serde::Serialize;

/// What was measured.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Report {
    /// Name of the shape.
    pub shape: &'static str,
    /// How weights are kept, such as `int8/32`.
    pub weights: String,
    /// Name of the backend.
    pub backend: &'static str,
    /// Instruction set of our kernels.
    pub kernels: &'static str,
    /// Threads of a step.
    pub threads: usize,
    /// Load of the machine before the run.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub load_average: Option<f64>,
    /// Read bandwidth of the machine.
    pub bandwidth_gb_s: f64,
    /// Products of bytes that these threads compute in registers, 10^9 a second.
    pub peak_products_g_s: f64,
    /// Bytes of weights that every step reads.
    pub weights_mib: f64,
    /// From nothing to a loaded model, page cache warm.
    pub load_s: f64,
    /// Anonymous memory that the model took, keys and values apart.
    pub anon_mib: f64,
    /// Keys and values of the ragged texts.
    pub kv_mib: f64,
    /// By number of texts; `8r` are eight of 50 to 1000 tokens.
    pub decode: BTreeMap<String, Decode>,
    /// By length of the prompt.
    pub prefill: BTreeMap<String, Prefill>,
    /// Some figures of other settings, in the order in which they were measured.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub variants: Vec<Variant>,
}

/// Figures of one setting; the first one is that of the other tables.
#[derive(Clone, Debug, Serialize)]
pub struct Variant {
    /// What is different.
    pub name: &'static str,
    /// Read bandwidth at that time.
    pub bandwidth_gb_s: f64,
    /// Tokens a second by figure, as `--only` names them.
    pub tok_s: BTreeMap<&'static str, f64>,
}

/// One row of the decoding table.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Decode {
    /// Tokens a second, all texts together.
    pub tok_s: f64,
    /// Share of what is possible: the time that reading the weights or computing the products takes at least,
    /// whichever is longer, over the time that the step takes.
    pub roofline: f64,
    /// Ratio to the unmodified graph.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub vs_ort: Option<f64>,
}

/// One row of the prompt table.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Prefill {
    /// Tokens a second.
    pub tok_s: f64,
    /// Share of what is possible, as for [`Decode`].
    pub roofline: f64,
    /// Ratio to the unmodified graph.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub vs_ort: Option<f64>,
    /// Ratio to the graph with dynamically quantised products.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub vs_integer: Option<f64>,
}

impl Report {
    /// The table.
    pub fn table(&self) -> String {
        let mut out = String::new();
        let ratio = |ratio: Option<f64>| ratio.map_or_else(String::new, |x| format!("{x:>8.2}"));
        // Writing to a string cannot fail.
        let _ = writeln!(
            out,
            "{} {}, {}, {}, {} threads{}",
            self.shape,
            self.weights,
            self.backend,
            self.kernels,
            self.threads,
            self.load_average
                .map_or_else(String::new, |load| format!(", load average {load:.1}"))
        );
        for (name, value, unit) in [
            ("read bandwidth", self.bandwidth_gb_s, "GB/s"),
            ("products of bytes", self.peak_products_g_s, "10^9/s"),
            ("weights of a step", self.weights_mib, "MiB"),
            ("load", self.load_s, "s"),
            ("anonymous beside KV", self.anon_mib, "MiB"),
            ("keys and values, 8r", self.kv_mib, "MiB"),
        ] {
            let _ = writeln!(out, "  {name:<22}{value:>10.2} {unit}");
        }
        let _ = writeln!(out, "\n  decode      tok/s   roofline  vs ORT");
        let mut decode: Vec<_> = self.decode.iter().collect();
        decode.sort_by_key(|(name, _)| {
            let digits = name.trim_end_matches('r');
            (name.ends_with('r'), digits.parse::<usize>().unwrap_or(0))
        });
        for (name, row) in decode {
            let share = row.roofline * 100.0;
            let _ = writeln!(
                out,
                "  {name:<6}{:>11.2}{share:>9.0} %{}",
                row.tok_s,
                ratio(row.vs_ort)
            );
        }
        let _ = writeln!(
            out,
            "\n  prefill     tok/s   roofline  vs ORT  vs MatMulInteger"
        );
        let mut prefill: Vec<_> = self.prefill.iter().collect();
        prefill.sort_by_key(|(name, _)| name.parse::<usize>().unwrap_or(0));
        for (name, row) in prefill {
            let _ = writeln!(
                out,
                "  {name:<6}{:>11.1}{:>9.0} %{}{}",
                row.tok_s,
                row.roofline * 100.0,
                ratio(row.vs_ort),
                ratio(row.vs_integer)
            );
        }
        self.variants_table(&mut out);
        out
    }

    /// The rows of other settings with their ratios to the first.
    fn variants_table(&self, out: &mut String) {
        let Some(first) = self.variants.first() else {
            return;
        };
        // Writing to a string cannot fail.
        let _ = write!(out, "\n  {:<14}{:>6}", "variant", "GB/s");
        for figure in first.tok_s.keys() {
            let _ = write!(out, "{:>9} tok/s ratio", figure);
        }
        let _ = writeln!(out);
        for row in &self.variants {
            let _ = write!(out, "  {:<14}{:>6.1}", row.name, row.bandwidth_gb_s);
            for (figure, base) in &first.tok_s {
                let _ = match row.tok_s.get(figure) {
                    Some(rate) => write!(out, "{rate:>15.1}{:>6.2}", rate / base),
                    None => write!(out, "{:>21}", ""),
                };
            }
            let _ = writeln!(out);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_has_the_keys_that_scripts_read_and_the_table_every_row() {
        let decode = Decode {
            tok_s: 12.5,
            roofline: 0.9,
            vs_ort: Some(1.25),
        };
        let report = Report {
            shape: "glm-mini",
            decode: ["8r", "16", "1"]
                .map(|name| (name.to_owned(), decode))
                .into(),
            prefill: [(
                "128".to_owned(),
                Prefill {
                    tok_s: 300.0,
                    roofline: 0.7,
                    vs_ort: None,
                    vs_integer: Some(1.5),
                },
            )]
            .into(),
            variants: [("as above", 12.0), ("int4", 18.0)]
                .map(|(name, rate)| Variant {
                    name,
                    bandwidth_gb_s: 30.0,
                    tok_s: [("1", rate)].into(),
                })
                .into(),
            ..Report::default()
        };
        let json = serde_json::json!(report);
        for key in ["bandwidth_gb_s", "load_s", "anon_mib", "kv_mib"] {
            assert!(json[key].is_number(), "{key}");
        }
        assert_eq!(json["decode"]["8r"]["vs_ort"], 1.25);
        assert!(json["prefill"]["128"].get("vs_ort").is_none());
        assert_eq!(json["prefill"]["128"]["vs_integer"], 1.5);
        assert_eq!(json["variants"][1]["tok_s"]["1"], 18.0);
        let table = report.table();
        assert!(table.contains("     70 %"), "{table}");
        let int4 = table.lines().find(|line| line.contains("int4"));
        assert!(int4.expect("a row").ends_with("18.0  1.50"), "{table}");
        let place = |name: &str| table.find(&format!("\n  {name} ")).expect("a row");
        assert!(
            place("1") < place("16") && place("16") < place("8r") && place("8r") < place("128")
        );
    }
}
