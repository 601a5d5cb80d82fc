//! Every field of every request, empty, as large as it can be, and at random, from one who may call: there is a right answer
//! or a refusal that says what is wrong, and never a fault of the coordinator.

use crate::raw::{call, methods, path};
use crate::scene::Scene;
use crate::support::answer;
use prost::Message as _;
use prost_reflect::{DynamicMessage, FieldDescriptor, Kind, ReflectMessage as _, Value};
use proto::v1::GetServerInfoRequest;
use tonic::Code;

/// Random values of each field.
const ROUNDS: usize = 3;

/// Most bytes of a string or of bytes.
const LARGE: usize = 64 << 10;

/// Messages within messages that are taken apart.
const DEPTH: usize = 2;

/// A callers' number (`scene::CALLERS`) for each service; the services that end the run come last.
const SPEAKERS: [(&str, usize); 6] = [
    ("Health/", 2),
    ("ServerReflection/", 2),
    ("AgentService/", 4),
    ("CheckpointService/", 6),
    ("ControlService/", 3),
    ("WorkerService/", 6),
];

#[tokio::test(flavor = "multi_thread")]
async fn every_field_may_be_anything() {
    let scene = Scene::start().await;
    let mut random = Random(0x5eed);
    let mut methods = methods();
    // Until its end there is something to ask for.
    methods.sort_by_key(|(name, _)| name.ends_with("/Stop"));
    for (service, caller) in SPEAKERS {
        for (name, method) in methods.iter().filter(|(name, _)| name.starts_with(service)) {
            let (path, is_stream) = path(method);
            let authorization = scene.authorization(caller);
            let first = scene.messages(name).remove(0);
            let base = DynamicMessage::decode(method.input(), first.as_slice()).unwrap();
            for message in mutants(&base, &mut random, DEPTH) {
                let messages = vec![message.encode_to_vec()];
                let outcome =
                    call(&scene.channel, authorization.as_deref(), (&path, is_stream), messages).await;
                let code = outcome.as_ref().map_or_else(|refusal| refusal.code, |_| Code::Ok);
                let of_stream = name == "CheckpointService/PutShard" && code == Code::DataLoss;
                assert!(
                    is_an_answer(code) || of_stream,
                    "{name}: {outcome:?} to {:.300}",
                    message.to_string()
                );
            }
        }
    }
    answer(scene.bench.control().get_server_info(GetServerInfoRequest {}).await).unwrap();
    // What was stored of all this can be read again.
    scene.bench.restart().await;
}

fn is_an_answer(code: Code) -> bool {
    use Code::*;
    [Ok, InvalidArgument, NotFound, AlreadyExists, FailedPrecondition, PermissionDenied, OutOfRange]
        .contains(&code)
}

/// Copies of `base` in each of which one field is another.
fn mutants(base: &DynamicMessage, random: &mut Random, depth: usize) -> Vec<DynamicMessage> {
    let mut found = Vec::new();
    for field in base.descriptor().fields() {
        let mut put = |value: Option<Value>| {
            let mut mutant = base.clone();
            match value {
                None => mutant.clear_field(&field),
                Some(value) if field.is_list() => mutant.set_field(&field, Value::List(vec![value; 9])),
                Some(value) => mutant.set_field(&field, value),
            }
            found.push(mutant);
        };
        put(None);
        if let Kind::Message(inner) = field.kind() {
            put(Some(Value::Message(DynamicMessage::new(inner.clone()))));
            let inner = match base.get_field(&field).as_message() {
                Some(present) => present.clone(),
                None => DynamicMessage::new(inner),
            };
            if depth > 0 {
                let inner = mutants(&inner, random, depth - 1);
                inner.into_iter().for_each(|mutant| put(Some(Value::Message(mutant))));
            }
            continue;
        }
        extremes(&field).into_iter().for_each(|value| put(Some(value)));
        for _ in 0..ROUNDS {
            put(Some(random.value(&field)));
        }
    }
    found
}

fn extremes(field: &FieldDescriptor) -> Vec<Value> {
    match field.kind() {
        Kind::Double => [f64::MAX, f64::MIN, f64::NAN, f64::NEG_INFINITY].map(Value::F64).to_vec(),
        Kind::Uint32 => vec![Value::U32(u32::MAX)],
        Kind::Uint64 => vec![Value::U64(u64::MAX), Value::U64(u64::MAX - 1)],
        Kind::Int32 => vec![Value::I32(i32::MAX), Value::I32(i32::MIN)],
        Kind::Bool => vec![Value::Bool(true)],
        Kind::Enum(_) => vec![Value::EnumNumber(i32::MAX), Value::EnumNumber(i32::MIN)],
        Kind::String => ["x", "/", "\0", "\n"].map(|text| Value::String(text.repeat(LARGE))).to_vec(),
        Kind::Bytes => vec![Value::Bytes(vec![0xff; LARGE].into())],
        other => panic!("no values of {other:?}: write some"),
    }
}

/// SplitMix64.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let x = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        x ^ (x >> 31)
    }

    /// Small numbers are as likely as large ones.
    fn value(&mut self, field: &FieldDescriptor) -> Value {
        let (bits, length) = (self.next() >> (self.next() % 64), self.next() % 40);
        match field.kind() {
            Kind::Double => Value::F64(f64::from_bits(bits)),
            Kind::Uint32 => Value::U32(bits as u32),
            Kind::Uint64 => Value::U64(bits),
            Kind::Int32 => Value::I32(bits as i32),
            Kind::Bool => Value::Bool(bits & 1 == 1),
            Kind::Enum(_) => Value::EnumNumber(bits as i32),
            Kind::String => {
                let mut any = || char::from_u32((self.next() % 0x250) as u32).unwrap_or('?');
                Value::String((0..length).map(|_| any()).collect())
            }
            Kind::Bytes => Value::Bytes((0..length).map(|_| self.next() as u8).collect::<Vec<u8>>().into()),
            other => panic!("no values of {other:?}: write some"),
        }
    }
}
