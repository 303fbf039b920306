//! Ranges of a scan, and the token by which a scan goes on.
//!
//! A token is opaque to clients: version (1 byte), a hash of the range and its direction (8 bytes,
//! little-endian), the last key sent (the rest). It is checked, not trusted: one of another range,
//! another direction or another version is refused, and so is one whose key lies outside the range.

use bytes::{BufMut as _, Bytes, BytesMut};
use xxhash_rust::xxh3::xxh3_64;

use crate::codec::Writer as _;
use crate::error::{Error, Reason, Result};
use crate::limits::KEY_BYTES_MAX;

const TOKEN_VERSION: u8 = 1;

/// What a scan covers: `start` inclusive, `end` exclusive, `None` open.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Range {
    pub start: Option<Bytes>,
    pub end: Option<Bytes>,
    pub reverse: bool,
}

impl Range {
    /// Whether no key can be in it.
    pub fn is_empty(&self) -> bool {
        match (&self.start, &self.end) {
            (Some(start), Some(end)) => start >= end,
            (None, Some(end)) => end.is_empty(),
            _ => false,
        }
    }

    fn contains(&self, key: &Bytes) -> bool {
        self.start.as_ref().is_none_or(|start| start <= key) && self.end.as_ref().is_none_or(|end| key < end)
    }

    /// What is left after `last`, in the range's direction.
    pub fn after(&self, last: &Bytes) -> Range {
        let mut rest = self.clone();
        if self.reverse {
            rest.end = Some(last.clone());
        } else {
            rest.start = Some(successor(last));
        }
        rest
    }

    /// The token that goes on after `last`.
    pub fn token(&self, last: &Bytes) -> Bytes {
        let mut token = BytesMut::with_capacity(9 + last.len());
        token.put_u8(TOKEN_VERSION);
        token.put_u64_le(self.hash());
        token.put_slice(last);
        token.freeze()
    }

    /// What is left of the range according to a token made by [`Range::token`].
    ///
    /// # Errors
    /// If the token was not made for this range.
    pub fn resume(&self, token: &Bytes) -> Result<Range> {
        let refused = |why: &str| {
            Err(Error::new(
                Reason::InvalidArgument,
                format!(
                    "page_token {why}; pass it on unchanged, with the range and direction of the scan it came from"
                ),
            ))
        };
        let Some((&version, rest)) = token.split_first() else { return Ok(self.clone()) };
        if version != TOKEN_VERSION {
            return refused("is of another version");
        }
        let Some((hash, last)) = rest.split_first_chunk::<8>() else { return refused("is too short") };
        if u64::from_le_bytes(*hash) != self.hash() {
            return refused("belongs to another scan");
        }
        let last = token.slice_ref(last);
        if last.is_empty() || last.len() > KEY_BYTES_MAX || !self.contains(&last) {
            return refused("names a key outside its range");
        }
        Ok(self.after(&last))
    }

    fn hash(&self) -> u64 {
        let mut fields = BytesMut::new();
        fields.put_u8(u8::from(self.reverse));
        for bound in [&self.start, &self.end] {
            fields.put_u8(u8::from(bound.is_some()));
            fields.write_bytes(bound.as_deref().unwrap_or_default());
        }
        xxh3_64(&fields)
    }
}

/// The first key after every key that starts with `prefix`; `None` if there is no such key.
pub(super) fn prefix_end(prefix: &[u8]) -> Option<Bytes> {
    let last = prefix.iter().rposition(|&byte| byte != 0xFF)?;
    let mut end = prefix[..=last].to_vec();
    end[last] += 1;
    Some(end.into())
}

/// The first key after `key`.
fn successor(key: &[u8]) -> Bytes {
    let mut next = BytesMut::with_capacity(key.len() + 1);
    next.put_slice(key);
    next.put_u8(0);
    next.freeze()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn range(start: &'static [u8], end: &'static [u8], reverse: bool) -> Range {
        let bound = |bytes: &'static [u8]| (!bytes.is_empty()).then(|| Bytes::from_static(bytes));
        Range { start: bound(start), end: bound(end), reverse }
    }

    #[test]
    fn prefix_ends() {
        let cases: [(&[u8], Option<&[u8]>); 6] = [
            (b"a", Some(b"b")),
            (b"ab\xFF", Some(b"ac")),
            (b"a\xFF\xFF", Some(b"b")),
            (b"\x00", Some(b"\x01")),
            (b"\xFF\xFF", None),
            (b"", None),
        ];
        for (prefix, end) in cases {
            assert_eq!(prefix_end(prefix).as_deref(), end, "{prefix:?}");
        }
    }

    #[test]
    fn foreign_tokens_are_refused() {
        let ours = range(b"b", b"m", false);
        let good = ours.token(&Bytes::from_static(b"c"));
        assert_eq!(ours.resume(&good).unwrap(), range(b"c\0", b"m", false));
        let backwards = range(b"b", b"m", true);
        assert_eq!(
            backwards.resume(&backwards.token(&Bytes::from_static(b"c"))).unwrap(),
            range(b"b", b"c", true)
        );

        let mut version = good.to_vec();
        version[0] = 2;
        let outside = ours.token(&Bytes::from_static(b"z"));
        let below = ours.token(&Bytes::from_static(b"a"));
        let empty = ours.token(&Bytes::new());
        for (name, token) in [
            ("other version", Bytes::from(version)),
            ("short", good.slice(..5)),
            ("one byte", good.slice(..1)),
            ("other range", range(b"b", b"n", false).token(&Bytes::from_static(b"c"))),
            ("other direction", backwards.token(&Bytes::from_static(b"c"))),
            ("after the end", outside),
            ("before the start", below),
            ("no key", empty),
            ("garbage", Bytes::from_static(b"garbage that is long enough")),
        ] {
            let error = ours.resume(&token).expect_err(name);
            assert_eq!(error.reason, Reason::InvalidArgument, "{name}");
            assert!(error.message.starts_with("page_token "), "{error}");
        }
    }

    #[test]
    fn ranges_with_equal_bytes_in_other_bounds_have_other_tokens() {
        let key = Bytes::from_static(b"k");
        assert_ne!(range(b"a", b"", false).token(&key), range(b"", b"a", false).token(&key));
    }

    proptest! {
        #[test]
        fn a_key_starts_with_the_prefix_if_and_only_if_it_is_in_the_prefix_range(
            prefix in prop::collection::vec(prop::sample::select(vec![0u8, 1, 0x7F, 0xFE, 0xFF]), 1..4),
            key in prop::collection::vec(prop::sample::select(vec![0u8, 1, 0x7F, 0xFE, 0xFF]), 0..6),
        ) {
            let range = Range { end: prefix_end(&prefix), start: Some(prefix.clone().into()), reverse: false };
            prop_assert_eq!(range.contains(&key.clone().into()), key.starts_with(&prefix));
        }

        #[test]
        fn resuming_leaves_exactly_the_keys_beyond_the_last(
            keys in prop::collection::btree_set(prop::collection::vec(any::<u8>(), 1..4), 1..20),
            at in any::<prop::sample::Index>(),
            reverse in any::<bool>(),
        ) {
            let keys: Vec<Bytes> = keys.into_iter().map(Bytes::from).collect();
            let whole = Range { start: None, end: None, reverse };
            let at = at.index(keys.len());
            let rest = whole.resume(&whole.token(&keys[at])).unwrap();
            for (index, key) in keys.iter().enumerate() {
                let beyond = if reverse { index < at } else { index > at };
                prop_assert_eq!(rest.contains(key), beyond);
            }
        }

        #[test]
        fn no_bytes_make_resuming_panic(token in prop::collection::vec(any::<u8>(), 0..40)) {
            let _ = range(b"b", b"m", false).resume(&token.into());
        }
    }
}
