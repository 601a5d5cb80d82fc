//! What `tests/golden/knn.py` computed with PyTorch.

use crate::knn::normalize_rows;

/// For the tests of kNN and of the spectrum.
pub struct Golden {
    /// Unit rows.
    pub bank: Vec<f32>,
    pub labels: Vec<u32>,
    pub queries: Vec<f32>,
    pub width: usize,
    pub predicted: Vec<u32>,
    pub left_out: Vec<u32>,
    /// Parts of the bank, with other numbers of neighbours.
    pub cases: Vec<GoldenCase>,
    /// Standard deviation and effective rank of the bank.
    pub spread: [f64; 2],
}

/// What some neighbours among some rows of the bank predict.
pub struct GoldenCase {
    pub name: &'static str,
    pub k: usize,
    pub rows: Vec<usize>,
    /// Whether the rule gives `k`.
    pub by_rule: bool,
    pub predicted: Vec<u32>,
    pub left_out: Vec<u32>,
}

impl Golden {
    pub fn read() -> Golden {
        let bytes = include_bytes!("../../../../tests/golden/knn.safetensors");
        let file = safetensors::SafeTensors::deserialize(bytes).unwrap();
        let width = file.tensor("bank").unwrap().shape()[1];
        let rows = |name| {
            let data = file.tensor(name).unwrap().data();
            let mut rows: Vec<f32> =
                data.as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect();
            normalize_rows(&mut rows, width);
            rows
        };
        let classes = |name: &str| -> Vec<u32> {
            let data = file.tensor(name).unwrap().data();
            data.as_chunks().0.iter().map(|bytes| i64::from_le_bytes(*bytes) as u32).collect()
        };
        let case = |(name, by_rule)| {
            let read = |what: &str| classes(&format!("{name}.{what}"));
            GoldenCase {
                name,
                k: read("k")[0] as usize,
                rows: read("rows").into_iter().map(|row| row as usize).collect(),
                by_rule,
                predicted: read("predicted"),
                left_out: read("left_out"),
            }
        };
        let names = [
            ("rule", true),
            ("rule_of_few", true),
            ("rule_without_a_class", true),
            ("nearest", false),
            ("explicit", false),
            ("explicit_of_few", false),
        ];
        let spread = file.tensor("spread").unwrap().data().as_chunks().0.to_vec();
        Golden {
            bank: rows("bank"),
            labels: classes("labels"),
            queries: rows("queries"),
            width,
            predicted: classes("predicted"),
            left_out: classes("left_out"),
            cases: names.into_iter().map(case).collect(),
            spread: [0, 1].map(|i| f64::from_le_bytes(spread[i])),
        }
    }
}
