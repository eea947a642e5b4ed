//! Strict decoding: what is accepted has one encoding.
//!
//! The libraries accept more than KeyMeld does (trailing elements, `null` for an absent field, an array
//! for a struct, long CBOR integers). So everything that is decoded is encoded again and compared: JSON
//! as a value, CBOR as bytes. Duplicate names, floats, nulls and large integers are looked for while
//! reading, because a value could not show them any more.

use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::cell::Cell;
use core::fmt;

use serde::de::{DeserializeSeed, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use zeroize::Zeroizing;

use crate::limits::JSON_INTEGER_MAX;

/// Why JSON was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum JsonError {
    /// More bytes than this kind of document may have.
    #[error("too large")]
    TooLarge,
    /// Not JSON, nested too deep, or followed by something.
    #[error("not well-formed JSON")]
    Malformed,
    /// A name twice in one object.
    #[error("a name occurs twice")]
    DuplicateName,
    /// A null; absent fields are left out.
    #[error("null is not used")]
    Null,
    /// A number with a fraction or an exponent.
    #[error("floating-point numbers are not used")]
    Float,
    /// An integer below 0 or from 2^53.
    #[error("integer out of range")]
    IntegerRange,
    /// A field that is not known.
    #[error("unknown field")]
    UnknownField,
    /// A field that must be there is not.
    #[error("missing field")]
    MissingField,
    /// A byte string that is not lower-case hex.
    #[error("not lower-case hex")]
    BadHex,
    /// A byte string of the wrong length.
    #[error("wrong length")]
    WrongLength,
    /// An id that is not a lower-case UUID.
    #[error("not a lower-case UUID")]
    BadId,
    /// A value of another type than the field has, or one not in its encoding.
    #[error("a value does not fit its field")]
    WrongType,
}

/// Decodes a JSON document of at most `bytes_max` bytes, strictly.
///
/// # Errors
/// [`JsonError`], one variant per reason.
pub fn from_json<T: for<'de> Deserialize<'de> + Serialize>(
    bytes: &[u8],
    bytes_max: usize,
) -> Result<T, JsonError> {
    if bytes.len() > bytes_max {
        return Err(JsonError::TooLarge);
    }
    let tree = read_tree(bytes)?;
    let decoded: T = serde_json::from_slice(bytes).map_err(|error| classify(&error))?;
    match serde_json::to_value(&decoded) {
        Ok(value) if value == tree => Ok(decoded),
        Ok(_) | Err(_) => Err(JsonError::WrongType),
    }
}

/// Encodes a JSON document without white space.
///
/// # Panics
/// Never for the artifacts of this crate, whose maps have string keys.
pub fn to_json<T: Serialize>(value: &T) -> Vec<u8> {
    serde_json::to_vec(value).expect("artifacts have string keys and no failing serializer")
}

/// Decodes a JSON document that carries secrets: it must equal its own canonical encoding (fixed field
/// order, no white space), which is made in a wiped buffer.
///
/// # Errors
/// [`JsonError`]; a document that is not canonical is [`JsonError::WrongType`].
pub fn from_secret_json<T: for<'de> Deserialize<'de> + Serialize>(
    bytes: &[u8],
    bytes_max: usize,
) -> Result<T, JsonError> {
    if bytes.len() > bytes_max {
        return Err(JsonError::TooLarge);
    }
    let decoded: T = serde_json::from_slice(bytes).map_err(|error| classify(&error))?;
    let canonical = written(&decoded, bytes.len()).ok_or(JsonError::WrongType)?;
    // Not constant time: both sides are the same secret document or this is not a valid one.
    if canonical.as_slice() == bytes { Ok(decoded) } else { Err(JsonError::WrongType) }
}

/// Encodes a JSON document that carries secrets into a buffer that is wiped on drop.
///
/// # Errors
/// [`JsonError::TooLarge`] where it does not fit in `bytes_max`.
pub fn to_secret_json<T: Serialize>(value: &T, bytes_max: usize) -> Result<Zeroizing<Vec<u8>>, JsonError> {
    let mut capacity = bytes_max.min(SECRET_BYTES_FIRST);
    loop {
        match written(value, capacity) {
            Some(bytes) => return Ok(bytes),
            None if capacity == bytes_max => return Err(JsonError::TooLarge),
            None => capacity = bytes_max.min(4 * capacity),
        }
    }
}

/// What is tried first: most documents are far smaller than they may be, and each byte of a buffer has to be wiped.
const SECRET_BYTES_FIRST: usize = 4 * 1024;

/// The document in a wiped buffer of `capacity` bytes; `None` where it does not fit.
fn written<T: Serialize>(value: &T, capacity: usize) -> Option<Zeroizing<Vec<u8>>> {
    // The buffer must not grow: growing would leave an unwiped copy behind. A slice cannot.
    let mut bytes = Zeroizing::new(alloc::vec![0; capacity]);
    let mut left = bytes.as_mut_slice();
    let mut serializer = serde_json::Serializer::new(&mut left);
    value.serialize(&mut serializer).ok()?;
    let length = capacity - left.len();
    bytes.truncate(length);
    Some(bytes)
}

/// Why CBOR was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a CBOR message in its one encoding")]
pub struct CborError;

/// Decodes a CBOR message whose re-encoding must give the same bytes.
///
/// # Errors
/// [`CborError`].
pub fn from_cbor<T: for<'b> minicbor::Decode<'b, ()> + minicbor::Encode<()>>(
    bytes: &[u8],
) -> Result<T, CborError> {
    let decoded: T = minicbor::decode(bytes).map_err(|_| CborError)?;
    if to_cbor(&decoded) == bytes { Ok(decoded) } else { Err(CborError) }
}

/// Encodes a CBOR message.
///
/// # Panics
/// Never: writing to a vector does not fail.
pub fn to_cbor<T: minicbor::Encode<()>>(value: &T) -> Vec<u8> {
    minicbor::to_vec(value).expect("writing to a vector does not fail")
}

fn classify(error: &serde_json::Error) -> JsonError {
    let text: String = error.to_string();
    let is = |prefix: &str| text.starts_with(prefix);
    if !error.is_data() {
        JsonError::Malformed
    } else if is("unknown field") || is("unknown variant") {
        JsonError::UnknownField
    } else if is("missing field") {
        JsonError::MissingField
    } else if is("bad-hex") {
        JsonError::BadHex
    } else if is("wrong-length") {
        JsonError::WrongLength
    } else if is("bad-id") {
        JsonError::BadId
    } else {
        JsonError::WrongType
    }
}

fn read_tree(bytes: &[u8]) -> Result<Value, JsonError> {
    let (reason, left) = (Cell::new(None), Cell::new(TREE_MAX));
    let mut deserializer = serde_json::Deserializer::from_slice(bytes);
    let tree = Tree { reason: &reason, left: &left }.deserialize(&mut deserializer);
    match (tree, deserializer.end()) {
        (Ok(tree), Ok(())) => Ok(tree),
        (Ok(_), Err(_)) | (Err(_), _) => Err(reason.get().unwrap_or(JsonError::Malformed)),
    }
}

/// How large a tree may grow: each value counts one, an object [`OBJECT_VALUES`]. At most some 16 MiB beside its
/// strings, however few bytes it is read from; the largest document that has a use takes less.
const TREE_MAX: usize = 128 * 1024;
/// An object's map makes room for several fields at once, at some 640 bytes.
const OBJECT_VALUES: usize = 8;

/// Reads any JSON and remembers why it is refused.
#[derive(Clone, Copy)]
struct Tree<'a> {
    reason: &'a Cell<Option<JsonError>>,
    left: &'a Cell<usize>,
}

impl Tree<'_> {
    fn grow<E: serde::de::Error>(&self, by: usize) -> Result<(), E> {
        let left = self.left.get().checked_sub(by).ok_or_else(|| self.refuse(JsonError::TooLarge))?;
        self.left.set(left);
        Ok(())
    }

    fn refuse<E: serde::de::Error>(&self, reason: JsonError) -> E {
        self.reason.set(Some(reason));
        E::custom("refused")
    }
}

impl<'de> DeserializeSeed<'de> for Tree<'_> {
    type Value = Value;

    fn deserialize<D: serde::Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        self.grow(1)?;
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Tree<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("strict JSON")
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_u64<E: serde::de::Error>(self, value: u64) -> Result<Value, E> {
        if value > JSON_INTEGER_MAX {
            return Err(self.refuse(JsonError::IntegerRange));
        }
        Ok(Value::from(value))
    }

    fn visit_i64<E: serde::de::Error>(self, _: i64) -> Result<Value, E> {
        Err(self.refuse(JsonError::IntegerRange))
    }

    fn visit_f64<E: serde::de::Error>(self, _: f64) -> Result<Value, E> {
        Err(self.refuse(JsonError::Float))
    }

    fn visit_unit<E: serde::de::Error>(self) -> Result<Value, E> {
        Err(self.refuse(JsonError::Null))
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(Value::from(value))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Value, A::Error> {
        let mut values = Vec::new();
        while let Some(value) = seq.next_element_seed(self)? {
            values.push(value);
        }
        Ok(Value::Array(values))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Value, A::Error> {
        self.grow(OBJECT_VALUES)?;
        let mut values = Map::new();
        while let Some(name) = map.next_key::<String>()? {
            let value = map.next_value_seed(self)?;
            if values.insert(name, value).is_some() {
                return Err(self.refuse(JsonError::DuplicateName));
            }
        }
        Ok(Value::Object(values))
    }
}

#[cfg(test)]
mod tests {
    use alloc::format;
    use alloc::string::String;
    use alloc::vec::Vec;

    use serde::{Deserialize, Serialize};

    use super::{
        CborError, JsonError, TREE_MAX, from_cbor, from_json, from_secret_json, to_cbor, to_json,
        to_secret_json,
    };
    use crate::bytes::Hash;
    use crate::secret::Secret;

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Inner {
        n: u64,
    }

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Outer {
        name: String,
        #[serde(skip_serializing_if = "Option::is_none")]
        note: Option<String>,
        list: Vec<Inner>,
        #[serde(skip_serializing_if = "Option::is_none")]
        hash: Option<Hash>,
    }

    fn refusal(json: &str) -> JsonError {
        from_json::<Outer>(json.as_bytes(), 10_000).expect_err(json)
    }

    #[test]
    fn strict_json_has_one_meaning() {
        let good = r#"{ "list":[{"n":9007199254740991}], "name":"a" }"#;
        let outer: Outer = from_json(good.as_bytes(), 100).expect("good");
        assert_eq!(outer.list[0].n, (1 << 53) - 1);
        assert_eq!(from_json::<Outer>(&to_json(&outer), 100), Ok(outer));

        assert_eq!(refusal(""), JsonError::Malformed);
        assert_eq!(refusal(r#"{"name":"a","list":[]} x"#), JsonError::Malformed);
        assert_eq!(refusal(r#"{"name":"a","list":[],"more":1}"#), JsonError::UnknownField);
        assert_eq!(refusal(r#"{"name":"a","list":[{"n":1,"m":1}]}"#), JsonError::UnknownField);
        assert_eq!(refusal(r#"{"name":"a","name":"a","list":[]}"#), JsonError::DuplicateName);
        assert_eq!(refusal(r#"{"name":"a","list":[{"n":1,"n":1}]}"#), JsonError::DuplicateName);
        assert_eq!(refusal(r#"{"name":"a","note":null,"list":[]}"#), JsonError::Null);
        assert_eq!(refusal(r#"{"name":"a","list":[{"n":1.0}]}"#), JsonError::Float);
        assert_eq!(refusal(r#"{"name":"a","list":[{"n":1e3}]}"#), JsonError::Float);
        assert_eq!(refusal(r#"{"name":"a","list":[{"n":-1}]}"#), JsonError::IntegerRange);
        assert_eq!(refusal(r#"{"name":"a","list":[{"n":9007199254740992}]}"#), JsonError::IntegerRange);
        assert_eq!(refusal(r#"{"name":"a","list":[[1]]}"#), JsonError::WrongType);
        assert_eq!(refusal(r#"["a",[]]"#), JsonError::WrongType);
        assert_eq!(refusal(r#"{"name":1,"list":[]}"#), JsonError::WrongType);
        assert_eq!(refusal(r#"{"list":[]}"#), JsonError::MissingField);
        assert_eq!(refusal(r#"{"name":"a","list":[],"hash":"AB"}"#), JsonError::BadHex);
        assert_eq!(refusal(r#"{"name":"a","list":[],"hash":"ab"}"#), JsonError::WrongLength);
        assert_eq!(
            refusal(&format!("{}1{}", "[".repeat(100_000 / 20), "]".repeat(5_000))),
            JsonError::TooLarge
        );
        assert_eq!(refusal(&"[".repeat(9_000)), JsonError::Malformed);
    }

    /// A few bytes of JSON can be many of memory: what a document grows into has a bound of its own.
    #[test]
    fn small_documents_do_not_grow_into_large_trees() {
        let list = |value: &str, count: usize| format!("[{}1]", format!("{value},").repeat(count));
        let read = |json: &str| from_json::<Vec<u8>>(json.as_bytes(), usize::MAX).expect_err(&json[..20]);
        let nested = format!("{}1{}", r#"{"":"#.repeat(120), "}".repeat(120));
        assert_eq!(read(&list(&nested, TREE_MAX / 1_000)), JsonError::TooLarge);
        assert_eq!(read(&list("{}", TREE_MAX / 9 + 1)), JsonError::TooLarge);
        assert_eq!(read(&list("[]", TREE_MAX)), JsonError::TooLarge);
        assert_eq!(read(&list("1", TREE_MAX - 1)), JsonError::TooLarge);
        assert_eq!(read(&list("{}", TREE_MAX / 9 - 1)), JsonError::WrongType);
        let longest: Vec<u8> =
            from_json(list("1", TREE_MAX - 2).as_bytes(), usize::MAX).expect("as large as it may be");
        assert_eq!(longest.len(), TREE_MAX - 1);
    }

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Keyed {
        kind: String,
        #[serde(with = "crate::secret::hex")]
        key: Secret<2>,
        #[serde(default, with = "crate::secret::hex::option", skip_serializing_if = "Option::is_none")]
        more: Option<Secret<2>>,
    }

    #[test]
    fn secret_json_is_canonical() {
        let bytes = br#"{"kind":"k","key":"0a0b","more":"0102"}"#;
        let keyed: Keyed = from_secret_json(bytes, 100).expect("canonical");
        assert_eq!(to_secret_json(&keyed, 100).expect("fits").as_slice(), bytes);
        assert!(to_secret_json(&keyed, 10).is_err());
        let exact = bytes.len();
        assert_eq!(to_secret_json(&keyed, exact).expect("fits").as_slice(), bytes);
        assert_eq!(to_secret_json(&keyed, exact - 1), Err(JsonError::TooLarge));
        // A buffer that had grown would have left a copy of the secrets behind, not wiped.
        assert_eq!(to_secret_json(&keyed, 100).expect("fits").capacity(), 100);
        let long = Keyed { kind: "k".repeat(10_000), ..keyed };
        let written = to_secret_json(&long, 20_000).expect("fits");
        assert_eq!((written.len(), written.capacity()), (10_000 + exact - 1, 16 * 1024));
        assert_eq!(from_secret_json(&written, 20_000), Ok(long));
        for bad in [
            r#"{"key":"0a0b","kind":"k"}"#,
            r#"{"kind":"k", "key":"0a0b"}"#,
            r#"{"kind":"k","key":"0A0B"}"#,
            r#"{"kind":"k","key":"\u0030a0b"}"#,
            r#"["k","0a0b"]"#,
            r#"{"kind":"k","key":"0a0b","key":"0a0b"}"#,
        ] {
            assert!(from_secret_json::<Keyed>(bad.as_bytes(), 100).is_err(), "{bad}");
        }
    }

    #[derive(Debug, PartialEq, minicbor::Encode, minicbor::Decode)]
    struct Message {
        #[n(0)]
        number: u64,
        #[n(1)]
        more: Option<u8>,
    }

    #[test]
    fn cbor_has_one_encoding() {
        let message = Message { number: 1, more: None };
        let bytes = to_cbor(&message);
        assert_eq!(from_cbor::<Message>(&bytes), Ok(message));
        for bad in [&[0x82, 1, 1, 0][..], &[0x83, 1, 1, 1], &[0x81, 0x18, 1], &[0x9f, 1, 0xff], &[0x80], &[]]
        {
            assert_eq!(from_cbor::<Message>(bad), Err(CborError), "{bad:?}");
        }
    }
}
