//! What a value of a key looks like in TOML: how it is read, written, and named when it is wrong.

use std::time::Duration;
use toml::Value;

use crate::choices::{
    Arch, Augment, BankDtype, BankStorage, BatchNorm, Convolution, Estimator, Head, MomentumSchedule,
    Normalizer, ObjectiveKind, OptimizerKind, Predictor, ScheduleKind, Stem,
};

/// A type that a key may have.
pub(crate) trait Setting: Sized {
    /// The value, if it is of this type.
    fn read(value: &Value) -> Option<Self>;
    /// The value in TOML; `None` if it is unset.
    fn write(&self) -> Option<Value>;
    /// What [`read`](Self::read) takes, for the message that refuses something else.
    fn expected() -> String;
}

impl Setting for u64 {
    fn read(value: &Value) -> Option<Self> {
        u64::try_from(value.as_integer()?).ok()
    }
    fn write(&self) -> Option<Value> {
        // A larger one cannot have been read.
        i64::try_from(*self).ok().map(Value::Integer)
    }
    fn expected() -> String {
        "a whole number".to_owned()
    }
}

impl Setting for usize {
    fn read(value: &Value) -> Option<Self> {
        usize::try_from(value.as_integer()?).ok()
    }
    fn write(&self) -> Option<Value> {
        i64::try_from(*self).ok().map(Value::Integer)
    }
    fn expected() -> String {
        u64::expected()
    }
}

impl Setting for f64 {
    fn read(value: &Value) -> Option<Self> {
        match value {
            Value::Float(number) => number.is_finite().then_some(*number),
            Value::Integer(number) => Some(*number as f64),
            _ => None,
        }
    }
    fn write(&self) -> Option<Value> {
        Some(Value::Float(*self))
    }
    fn expected() -> String {
        "a number".to_owned()
    }
}

impl Setting for bool {
    fn read(value: &Value) -> Option<Self> {
        value.as_bool()
    }
    fn write(&self) -> Option<Value> {
        Some(Value::Boolean(*self))
    }
    fn expected() -> String {
        "true or false".to_owned()
    }
}

impl Setting for String {
    fn read(value: &Value) -> Option<Self> {
        value.as_str().map(str::to_owned)
    }
    fn write(&self) -> Option<Value> {
        Some(Value::String(self.clone()))
    }
    fn expected() -> String {
        "text".to_owned()
    }
}

impl Setting for [f64; 3] {
    fn read(value: &Value) -> Option<Self> {
        let [r, g, b] = value.as_array()?.as_slice() else { return None };
        Some([f64::read(r)?, f64::read(g)?, f64::read(b)?])
    }
    fn write(&self) -> Option<Value> {
        Some(Value::Array(self.iter().map(|channel| Value::Float(*channel)).collect()))
    }
    fn expected() -> String {
        "three numbers, one a channel".to_owned()
    }
}

impl Setting for Vec<u64> {
    fn read(value: &Value) -> Option<Self> {
        value.as_array()?.iter().map(u64::read).collect()
    }
    fn write(&self) -> Option<Value> {
        self.iter().map(u64::write).collect::<Option<_>>().map(Value::Array)
    }
    fn expected() -> String {
        "whole numbers".to_owned()
    }
}

/// Empty text unsets.
impl<T: Setting> Setting for Option<T> {
    fn read(value: &Value) -> Option<Self> {
        if value.as_str() == Some("") { Some(None) } else { T::read(value).map(Some) }
    }
    fn write(&self) -> Option<Value> {
        self.as_ref().and_then(T::write)
    }
    fn expected() -> String {
        format!("{}, or nothing to unset it", T::expected())
    }
}

const UNITS: [(&str, u64); 4] = [("h", 3_600_000), ("min", 60_000), ("s", 1000), ("ms", 1)];

impl Setting for Duration {
    fn read(value: &Value) -> Option<Self> {
        // Nothing needs no unit.
        if value.as_integer() == Some(0) {
            return Some(Duration::ZERO);
        }
        let text = value.as_str()?.trim();
        let digits = text.find(|c: char| !c.is_ascii_digit())?;
        let (number, unit) = text.split_at(digits);
        let (_, millis) = UNITS.iter().find(|(name, _)| *name == unit.trim())?;
        Some(Duration::from_millis(number.parse::<u64>().ok()?.checked_mul(*millis)?))
    }
    fn write(&self) -> Option<Value> {
        let total = self.as_millis();
        let (name, millis) = match total {
            0 => ("s", 1),
            _ => UNITS.into_iter().find(|(_, millis)| total.is_multiple_of(u128::from(*millis)))?,
        };
        Some(Value::String(format!("{}{name}", total / u128::from(millis))))
    }
    fn expected() -> String {
        "a duration such as \"15min\", \"30s\" or \"500ms\"".to_owned()
    }
}

impl Setting for Arch {
    fn read(value: &Value) -> Option<Self> {
        value.as_str()?.parse().ok()
    }
    fn write(&self) -> Option<Value> {
        Some(Value::String(self.to_string()))
    }
    fn expected() -> String {
        format!("one of {} (the width a multiple of 4 and of the heads)", Arch::forms())
    }
}

macro_rules! named {
    ($($Name:ident: $names:expr),+ $(,)?) => {$(
        impl Setting for $Name {
            fn read(value: &Value) -> Option<Self> {
                value.as_str()?.parse().ok()
            }
            fn write(&self) -> Option<Value> {
                Some(Value::String(self.to_string()))
            }
            fn expected() -> String {
                match $names {
                    [only] => format!("`{only}`"),
                    names => format!("one of {}", names.join(", ")),
                }
            }
        }
    )+};
}

named!(
    Stem: Stem::NAMES,
    Head: Head::FORMS,
    BatchNorm: BatchNorm::NAMES,
    Convolution: Convolution::NAMES,
    ObjectiveKind: ObjectiveKind::NAMES,
    Estimator: Estimator::NAMES,
    Normalizer: Normalizer::NAMES,
    MomentumSchedule: MomentumSchedule::NAMES,
    BankDtype: BankDtype::NAMES,
    BankStorage: BankStorage::NAMES,
    Predictor: Predictor::NAMES,
    OptimizerKind: OptimizerKind::NAMES,
    ScheduleKind: ScheduleKind::NAMES,
    Augment: Augment::NAMES,
);
