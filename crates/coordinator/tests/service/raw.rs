//! A client that is none of ours: it takes any server, and sends any bytes to any method under any name.

use crate::support::assert_refused;
use prost_reflect::{DescriptorPool, MethodDescriptor};
use proto::{PROTOCOL, Refusal, transport};
use rustls::ClientConfig;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, ring};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{DigitallySignedStruct, SignatureScheme};
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tonic::client::Grpc;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::codegen::http::Uri;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::transport::Channel;
use tonic::{Code, Request, Status};

/// No call of this suite may take longer.
const LIMIT: Duration = Duration::from_secs(5);

/// A stream that has said nothing for so long has nothing to say yet.
const QUIET: Duration = Duration::from_millis(100);

/// A connection with encryption, on which nothing is shown.
pub async fn encrypted(address: &str) -> Channel {
    let crypto = Arc::new(ring::default_provider());
    let mut config = ClientConfig::builder_with_provider(Arc::clone(&crypto))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(AnyServer(crypto)))
        .with_no_client_auth();
    config.alpn_protocols = vec![b"h2".to_vec()];
    let (tls, at) = (TlsConnector::from(Arc::new(config)), address.to_owned());
    let open = tower::service_fn(move |_: Uri| {
        let (tls, at) = (tls.clone(), at.clone());
        async move {
            let name = ServerName::try_from("anybody").expect("a name");
            let tcp = TcpStream::connect(at).await?;
            // Every call would wait for an acknowledgement otherwise.
            tcp.set_nodelay(true)?;
            Ok::<_, std::io::Error>(hyper_util::rt::TokioIo::new(tls.connect(name, tcp).await?))
        }
    });
    transport::endpoint(address).unwrap().connect_with_connector(open).await.unwrap()
}

/// A connection in clear text, as version 1 of the protocol made them.
pub async fn clear(address: &str) -> Channel {
    transport::endpoint(address).unwrap().connect().await.unwrap()
}

/// Sends `messages` to the method at `path` and returns the first message of the answer, if one comes soon. A unary method
/// has one.
pub async fn call(
    channel: &Channel,
    authorization: Option<&str>,
    (path, is_stream): (&str, bool),
    messages: Vec<Vec<u8>>,
) -> Result<Option<Vec<u8>>, Refusal> {
    let mut request = Request::new(tokio_stream::iter(messages));
    if let Some(text) = authorization {
        request.metadata_mut().insert("authorization", text.parse().unwrap());
    }
    let answer = async {
        let mut client = Grpc::new(channel.clone());
        client.ready().await.expect("the coordinator serves");
        let path = PathAndQuery::try_from(path).unwrap();
        let mut answer = client.streaming(request, path, Bytes).await?.into_inner();
        match is_stream {
            true => tokio::time::timeout(QUIET, answer.message()).await.unwrap_or(Ok(None)),
            false => answer.message().await,
        }
    };
    let answer: Result<_, Status> =
        tokio::time::timeout(LIMIT, answer).await.unwrap_or_else(|_| panic!("{path} does not answer"));
    answer.map_err(|status| Refusal::from(&status))
}

/// Everything that is served, by what describes it on the wire.
pub fn methods() -> Vec<(String, MethodDescriptor)> {
    let mut pool = DescriptorPool::decode(proto::FILE_DESCRIPTOR_SET).unwrap();
    pool.decode_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET).unwrap();
    pool.decode_file_descriptor_set(tonic_reflection::pb::v1::FILE_DESCRIPTOR_SET).unwrap();
    pool.decode_file_descriptor_set(tonic_reflection::pb::v1alpha::FILE_DESCRIPTOR_SET).unwrap();
    let methods: Vec<_> = pool.services().flat_map(|service| service.methods().collect::<Vec<_>>()).collect();
    let short = |method: &MethodDescriptor| {
        let service = method.parent_service();
        let alpha = if service.package_name().ends_with("v1alpha") { "v1alpha." } else { "" };
        format!("{alpha}{}/{}", service.name(), method.name())
    };
    methods.into_iter().map(|method| (short(&method), method)).collect()
}

/// As [`call`] names a method.
pub fn path(method: &MethodDescriptor) -> (String, bool) {
    (format!("/{}/{}", method.parent_service().full_name(), method.name()), method.is_server_streaming())
}

/// Who speaks in clear text hears which protocol is spoken, `how`, and nothing else; health may answer.
pub async fn check_clear_text(address: &str, how: &str, answered: &[&str]) {
    let channel = clear(address).await;
    for (name, method) in methods() {
        let (path, is_stream) = path(&method);
        for authorization in [None, Some(format!("Bearer {}", "00".repeat(32)))] {
            let outcome =
                call(&channel, authorization.as_deref(), (&path, is_stream), vec![Vec::new()]).await;
            if answered.contains(&name.as_str()) {
                outcome.unwrap();
                continue;
            }
            let refusal = outcome.unwrap_err();
            let words = format!("speaks protocol {PROTOCOL} {how}");
            assert_refused(&refusal, Code::FailedPrecondition, "protocol_mismatch", &words);
            assert!(refusal.message.contains("as protocol 1 did"), "{refusal:?}");
        }
    }
}

/// Messages as they are on the wire.
#[derive(Clone, Copy)]
struct Bytes;

impl Codec for Bytes {
    type Encode = Vec<u8>;
    type Decode = Vec<u8>;
    type Encoder = Bytes;
    type Decoder = Bytes;

    fn encoder(&mut self) -> Bytes {
        Bytes
    }

    fn decoder(&mut self) -> Bytes {
        Bytes
    }
}

impl Encoder for Bytes {
    type Item = Vec<u8>;
    type Error = Status;

    fn encode(&mut self, item: Vec<u8>, to: &mut EncodeBuf<'_>) -> Result<(), Status> {
        bytes::BufMut::put_slice(to, &item);
        Ok(())
    }
}

impl Decoder for Bytes {
    type Item = Vec<u8>;
    type Error = Status;

    fn decode(&mut self, from: &mut DecodeBuf<'_>) -> Result<Option<Vec<u8>>, Status> {
        let n = bytes::Buf::remaining(from);
        Ok(Some(bytes::Buf::copy_to_bytes(from, n).to_vec()))
    }
}

#[derive(Debug)]
struct AnyServer(Arc<CryptoProvider>);

impl ServerCertVerifier for AnyServer {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        unreachable!("TLS 1.3 alone is offered")
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
