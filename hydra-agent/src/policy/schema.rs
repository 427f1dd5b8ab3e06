//! The JSON schema of policy files, for editors: made from the same list of keys that the reader goes by.

use schemars::generate::SchemaSettings;

use super::file::File;

/// The text of `policies/schema.json`.
pub fn schema() -> String {
    let settings = SchemaSettings::draft07();
    let schema = settings.into_generator().into_root_schema_for::<File>();
    let mut text = serde_json::to_string_pretty(&schema).unwrap_or_default();
    text.push('\n');
    text
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_committed_schema_is_current() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../policies/schema.json");
        if std::env::var_os("HYDRA_REGENERATE").is_some() {
            std::fs::write(path, super::schema()).unwrap();
        }
        let committed = std::fs::read_to_string(path).unwrap_or_default();
        assert!(committed == super::schema(), "policies/schema.json is old: run `cargo xtask gen`");
    }
}
