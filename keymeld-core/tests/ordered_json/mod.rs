//! JSON that keeps the order of its fields, so that each of its nodes can be put in a wrong way.

use std::fmt;

use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::Value;

/// A document or a part of one.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Json {
    Object(Vec<(String, Json)>),
    Array(Vec<Json>),
    Text(String),
    Number(u64),
    Bool(bool),
    /// Whatever else is to stand there, spelled out.
    Raw(String),
}

impl Json {
    /// Reads a well-formed document without nulls and floats.
    pub(crate) fn read(bytes: &[u8]) -> Json {
        serde_json::from_slice(bytes).expect("well-formed")
    }

    /// Writes it without white space.
    pub(crate) fn write(&self) -> String {
        let list = |items: Vec<String>| items.join(",");
        let quoted = |text: &str| Value::from(text).to_string();
        match self {
            Json::Object(fields) => {
                let field = |(name, value): &(String, Json)| format!("{}:{}", quoted(name), value.write());
                format!("{{{}}}", list(fields.iter().map(field).collect()))
            }
            Json::Array(items) => format!("[{}]", list(items.iter().map(Json::write).collect())),
            Json::Text(text) => quoted(text),
            Json::Number(number) => number.to_string(),
            Json::Bool(value) => value.to_string(),
            Json::Raw(raw) => raw.clone(),
        }
    }

    /// All nodes, each before those inside it.
    pub(crate) fn nodes(&self) -> Vec<&Json> {
        let mut nodes = vec![self];
        match self {
            Json::Object(fields) => nodes.extend(fields.iter().flat_map(|(_, value)| value.nodes())),
            Json::Array(items) => nodes.extend(items.iter().flat_map(Json::nodes)),
            Json::Text(_) | Json::Number(_) | Json::Bool(_) | Json::Raw(_) => {}
        }
        nodes
    }

    /// The document with another node in the place of one of [`nodes`](Self::nodes).
    pub(crate) fn with(&self, index: usize, other: Json) -> Json {
        let mut document = self.clone();
        *document.node_mut(&mut { index }).expect("one of the nodes") = other;
        document
    }

    fn node_mut(&mut self, left: &mut usize) -> Option<&mut Json> {
        if *left == 0 {
            return Some(self);
        }
        *left -= 1;
        match self {
            Json::Object(fields) => fields.iter_mut().find_map(|(_, value)| value.node_mut(left)),
            Json::Array(items) => items.iter_mut().find_map(|item| item.node_mut(left)),
            Json::Text(_) | Json::Number(_) | Json::Bool(_) | Json::Raw(_) => None,
        }
    }
}

impl<'de> Deserialize<'de> for Json {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Json, D::Error> {
        deserializer.deserialize_any(Reader)
    }
}

struct Reader;

impl<'de> Visitor<'de> for Reader {
    type Value = Json;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_bool<E>(self, value: bool) -> Result<Json, E> {
        Ok(Json::Bool(value))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Json, E> {
        Ok(Json::Number(value))
    }

    fn visit_str<E>(self, value: &str) -> Result<Json, E> {
        Ok(Json::Text(value.into()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Json, A::Error> {
        let mut items = Vec::new();
        while let Some(item) = seq.next_element()? {
            items.push(item);
        }
        Ok(Json::Array(items))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Json, A::Error> {
        let mut fields = Vec::new();
        while let Some(field) = map.next_entry()? {
            fields.push(field);
        }
        Ok(Json::Object(fields))
    }
}
