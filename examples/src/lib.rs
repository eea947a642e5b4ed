//! Examples of KeyMeld used as a library.
