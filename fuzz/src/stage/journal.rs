//! What was said on a stage, in the forms that it can be said again in.

use keymeld_core::api::http::{Request, Response};
use keymeld_core::api::router::Call;
use keymeld_core::client::Keep;
use keymeld_core::enclave;
use keymeld_core::gateway;
use keymeld_core::record::Persist;

/// A request to an enclave.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Asked {
    /// Which enclave, by its place.
    pub at: usize,
    /// As in the frame's header.
    pub routing_id: [u8; 16],
    /// The message.
    pub body: Vec<u8>,
}

/// Everything that was said.
#[derive(Debug, Default)]
pub struct Journal {
    /// Requests of clients and the gateway's responses, by the client's place.
    pub exchanges: Vec<(usize, Request, Response)>,
    /// The same requests as the gateway was told.
    pub calls: Vec<Call>,
    /// Requests to enclaves.
    pub asked: Vec<Asked>,
    /// Their replies, each as its enclave gave it.
    pub replies: Vec<Vec<u8>>,
    /// Documents of the security modules.
    pub documents: Vec<Vec<u8>>,
    /// What the gateway wrote.
    pub persists: Vec<Persist>,
    /// What clients kept, by their places.
    pub kept: Vec<(usize, Keep)>,
}

impl Journal {
    pub(super) fn gateway(&mut self, event: &gateway::Event) {
        if let gateway::Event::Requested { call, .. } = event {
            self.calls.push(call.clone());
        }
    }

    pub(super) fn enclave(&mut self, at: usize, event: &enclave::Event) {
        match event {
            enclave::Event::Requested { routing_id, body, .. } => {
                self.asked.push(Asked { at, routing_id: *routing_id, body: body.clone() });
            }
            enclave::Event::Attested { document: Ok(document), .. } => self.documents.push(document.clone()),
            enclave::Event::Attested { document: Err(_), .. }
            | enclave::Event::Started
            | enclave::Event::DataKeyGenerated { .. }
            | enclave::Event::DataKeyDecrypted { .. }
            | enclave::Event::IdentityShared(_)
            | enclave::Event::Ticked => {}
        }
    }
}
