//! The threads that talk to security module and key service, so that no worker waits for either.

use std::sync::mpsc::{Receiver, Sender};

use keymeld_core::enclave::identity::DataKey;
use keymeld_core::enclave::{CommandToken, DataKeyContext, Event, Failed};
use keymeld_core::secret::Secret;
use keymeld_transport::nsm::Nsm;
use keymeld_transport::process::EndsWithThread;

use crate::worker::Inbound;

/// Something that a worker asks the security module.
pub(crate) struct ModuleQuestion {
    pub(crate) asker: Sender<Inbound>,
    pub(crate) token: CommandToken,
    pub(crate) public_key: Option<Vec<u8>>,
    pub(crate) nonce: Option<Vec<u8>>,
    pub(crate) user_data: Option<Vec<u8>>,
}

/// Something that a worker asks the key service.
pub(crate) struct KeyQuestion {
    pub(crate) asker: Sender<Inbound>,
    pub(crate) token: CommandToken,
    pub(crate) task: KeyTask,
}

/// What the key service is to do.
pub(crate) enum KeyTask {
    Generate(DataKeyContext),
    Decrypt(DataKeyContext, Vec<u8>),
}

/// What wraps data keys: KMS, or in development a file. Calls may take long.
pub(crate) trait KeyService: Send {
    /// A new data key for this context.
    ///
    /// # Errors
    /// [`Failed`], after it logged why.
    fn generate(&mut self, context: &DataKeyContext) -> Result<DataKey, Failed>;

    /// The data key that was wrapped for this very context.
    ///
    /// # Errors
    /// As [`generate`](Self::generate).
    fn decrypt(&mut self, context: &DataKeyContext, encrypted: &[u8]) -> Result<Secret<32>, Failed>;
}

/// Answers until no worker is left.
pub(crate) fn answer_for_module(mut nsm: Box<dyn Nsm>, questions: &Receiver<ModuleQuestion>) {
    let _guard = EndsWithThread;
    while let Ok(question) = questions.recv() {
        let ModuleQuestion { asker, token, public_key, nonce, user_data } = question;
        let document = nsm.attest(public_key.as_deref(), nonce.as_deref(), user_data.as_deref());
        let document = document.map_err(|error| {
            tracing::error!(%error, "no attestation document");
            Failed
        });
        // A worker that has ended needs no answer.
        let _ = asker.send(Inbound::Event(Event::Attested { token, document }));
    }
}

/// Answers until no worker is left.
pub(crate) fn answer_for_keys(mut keys: Box<dyn KeyService>, questions: &Receiver<KeyQuestion>) {
    let _guard = EndsWithThread;
    while let Ok(KeyQuestion { asker, token, task }) = questions.recv() {
        let event = match task {
            KeyTask::Generate(context) => Event::DataKeyGenerated { token, key: keys.generate(&context) },
            KeyTask::Decrypt(context, encrypted) => {
                Event::DataKeyDecrypted { token, key: keys.decrypt(&context, &encrypted) }
            }
        };
        let _ = asker.send(Inbound::Event(event));
    }
}
