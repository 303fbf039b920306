//! Layers: lists of accepted values with their origins, laid over each other by figment.

use figment::value::{Dict, Map, Value as FigmentValue};
use figment::{Figment, Metadata, Profile, Provider, Source};

use super::keys::{self, KEYS, Key};
use super::problem::{Origin, suggest};
use super::value::Value;

/// One accepted value.
#[derive(Debug, Clone)]
pub struct Entry {
    pub key: &'static Key,
    pub value: Value,
    pub origin: Origin,
}

/// The key that an unknown name was probably meant to be.
pub fn suggest_key(full: &str) -> Option<&'static Key> {
    let (section, leaf) = full.rsplit_once('.').unwrap_or(("", full));
    // The right name in the wrong section; "name" and "addr" alone would fit too many.
    let same_leaf: Vec<&Key> = KEYS.iter().filter(|key| key.leaf() == leaf).collect();
    if let [only] = same_leaf[..] {
        return keys::find(only.name);
    }
    let similar = |keys: &mut dyn Iterator<Item = &'static Key>| {
        let keys: Vec<&'static Key> = keys.collect();
        let meant = suggest(leaf, keys.iter().map(|key| key.leaf()))?;
        keys.into_iter().find(|key| key.leaf() == meant)
    };
    let is_section = KEYS.iter().any(|key| key.section() == section);
    let near = match is_section {
        // Within a section the section's name is no likeness.
        true => similar(&mut KEYS.iter().filter(|key| key.section() == section)),
        false => None,
    };
    let is_split = is_section && !section.is_empty();
    near.or_else(|| match is_split {
        true => None,
        false => suggest(full, KEYS.iter().map(|key| key.name)).and_then(keys::find),
    })
    .or_else(|| similar(&mut KEYS.iter()))
}

/// The layers, lowest first.
#[derive(Debug, Default)]
pub struct Layers {
    layers: Vec<Vec<Entry>>,
    figment: Figment,
}

/// A layer as figment wants it; its place in the pile is its name.
struct Provided<'a> {
    place: usize,
    entries: &'a [Entry],
}

impl Provider for Provided<'_> {
    fn metadata(&self) -> Metadata {
        Metadata::from("layer", Source::Custom(self.place.to_string()))
    }

    fn data(&self) -> Result<Map<Profile, Dict>, figment::Error> {
        let mut dict = Dict::new();
        for entry in self.entries {
            let value = match &entry.value {
                Value::Text(text) => FigmentValue::from(text.as_str()),
                Value::Number(number) => FigmentValue::from(*number),
                Value::List(items) => FigmentValue::from(items.clone()),
            };
            match entry.key.section() {
                "" => {
                    dict.insert(entry.key.leaf().to_string(), value);
                }
                section => {
                    let section =
                        dict.entry(section.to_string()).or_insert_with(|| FigmentValue::from(Dict::new()));
                    if let FigmentValue::Dict(_, section) = section {
                        section.insert(entry.key.leaf().to_string(), value);
                    }
                }
            }
        }
        Ok(Profile::Default.collect(dict))
    }
}

impl Layers {
    /// Lays `entries` over what is there.
    pub fn push(&mut self, entries: Vec<Entry>) {
        let provided = Provided { place: self.layers.len(), entries: &entries };
        self.figment = std::mem::take(&mut self.figment).merge(provided);
        self.layers.push(entries);
    }

    /// The value on top for this key, with its origin.
    pub fn find(&self, name: &str) -> Option<&Entry> {
        let place: usize = self.figment.find_metadata(name)?.source.as_ref()?.custom()?.parse().ok()?;
        // Within a layer the last one wins, as it does for figment.
        self.layers.get(place)?.iter().rev().find(|entry| entry.key.name == name)
    }

    /// Everything on top, as `T` wants it.
    pub fn extract<'de, T: serde::Deserialize<'de>>(&self) -> Result<T, Box<figment::Error>> {
        self.figment.extract().map_err(Box::new)
    }
}
