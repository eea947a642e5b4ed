//! The configuration files of gateway and enclave.

/// A file of settings; the first byte says of which program.
///
/// # Panics
/// Where settings pass that the program says it refuses.
pub fn settings(bytes: &[u8]) {
    let Some((program, text)) = bytes.split_first() else { return };
    let Ok(text) = std::str::from_utf8(text) else { return };
    if program % 2 == 1 {
        if let Ok(config) = keymeld_enclave::Config::from_toml(text, []) {
            assert!(config.link.connections_max > 0 && config.link.in_flight_max > 0);
            let _ = config.hash();
        }
        return;
    }
    // A token's file would be read, and an input may name any file; escapes could spell the name too.
    if text.contains("api_token_file") || text.contains('\\') {
        return;
    }
    if let Ok(config) = keymeld_gateway::Config::from_toml(text, []) {
        assert!(!config.enclaves.is_empty());
        assert!(config.api_token.is_none_or(|token| !token.expose().is_empty()));
    }
}
