//! What clients ask.

use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;

use neap_memory::Backing;
use neap_memory::policy::PolicyName;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};

use crate::config::keyvalue::lenient;
use crate::config::units::{Address, Size};

/// What a client can ask.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(tag = "request", rename_all = "kebab-case", rename_all_fields = "kebab-case")]
#[serde(deny_unknown_fields)]
pub enum Request {
    /// How the machine and its memory are: [`Status`](super::Status).
    Status {
        /// Ask the kernel how much memory each tier has, too.
        #[serde(default, skip_serializing_if = "is_false")]
        verify: bool,
    },
    /// Where guest memory is: [`Residency`](super::Residency).
    Residency {
        /// Ask the kernel too.
        #[serde(default)]
        verify: bool,
        /// First address to tell of.
        #[serde(default)]
        from: Hex,
    },
    /// Move guest memory: [`Migrated`](super::Migrated).
    Migrate(Migrate),
    /// Bring home everything that is in frames of a region: [`Migrated`](super::Migrated).
    Evacuate(Evacuate),
    /// Park the vCPUs: [`Lifecycle`](super::Lifecycle).
    Pause {},
    /// Let the vCPUs go on: [`Lifecycle`](super::Lifecycle).
    Resume {},
    /// Hold guest memory where it is until `unpin`: [`Pinned`](super::Pinned).
    Pin {
        /// What to hold.
        range: Range,
    },
    /// Empty a region, take it away, and give its host memory back:
    /// [`Unplugged`](super::Unplugged).
    Unplug {
        /// The region's number, from 0.
        region: u8,
    },
    /// Give a region back that `unplug` took away, or give another in its place:
    /// [`Plugged`](super::Plugged).
    Plug(Plug),
    /// Make the host's page behind a page of guest memory fail, for good, to
    /// try what follows: [`PageFailed`](super::PageFailed).
    FailPage {
        /// In the page.
        address: Hex,
    },
    /// Let go of what `pin` holds: [`Unpinned`](super::Unpinned).
    Unpin {
        /// The number that `pin` answered.
        pin: u64,
    },
    /// The jobs that there are: [`Jobs`](super::Jobs).
    Jobs {},
    /// How a job is: [`Job`](super::Job).
    Job {
        /// Its number.
        job: u64,
    },
    /// End a job between two granules: [`Job`](super::Job).
    Cancel {
        /// Its number.
        job: u64,
    },
    /// What moves by itself, or another policy: [`Policy`](super::Policy).
    Policy {
        /// The policy from now on.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        set: Option<PolicyWord>,
    },
    /// Everything that is counted, in the text format of Prometheus:
    /// [`Metrics`](super::Metrics).
    Metrics {},
}

/// [`Request::Migrate`].
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Migrate {
    /// Guest memory; none: all of it.
    #[serde(default)]
    pub ranges: Vec<Range>,
    /// Where to.
    pub to: To,
    /// What may be collected; nothing said: all of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub select: Option<Vec<SelectFlag>>,
    /// Of what is in device frames, only that in this region's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from_pool: Option<u8>,
    /// Most granules to move.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit: Option<u64>,
    /// Answer at once, with a [`Job`](super::Job) that goes on when whoever
    /// asked is gone.
    #[serde(default, skip_serializing_if = "is_false")]
    #[schemars(skip)]
    pub detach: bool,
}

/// [`Request::Evacuate`].
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, PartialEq, Eq)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Evacuate {
    /// The region's number, from 0.
    pub region: u8,
    /// As in [`Migrate`].
    #[serde(default, skip_serializing_if = "is_false")]
    #[schemars(skip)]
    pub detach: bool,
}

/// [`Request::Plug`].
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, PartialEq, Eq)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Plug {
    /// The region's number, from 0.
    pub region: u8,
    /// Bytes of its pool from now on, at the most what it was started with.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "some_size")]
    #[schemars(schema_with = "size_schema")]
    pub pool: Option<u64>,
    /// Host memory behind it from now on: `anon` or `node:N`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backing: Option<BackingWord>,
}

fn some_size<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Option<u64>, D::Error> {
    size(deserializer).map(Some)
}

/// A kind of host memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BackingWord(pub Backing);

impl Serialize for BackingWord {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for BackingWord {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        lenient(deserializer).map(Self)
    }
}

impl JsonSchema for BackingWord {
    fn schema_name() -> Cow<'static, str> {
        "Backing".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": "string",
            "description": "A kind of host memory, such as \"anon\" or \"node:1\"."
        })
    }
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde's signature")]
fn is_false(value: &bool) -> bool {
    !value
}

/// A policy by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PolicyWord(pub PolicyName);

impl Serialize for PolicyWord {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for PolicyWord {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        lenient(deserializer).map(Self)
    }
}

impl JsonSchema for PolicyWord {
    fn schema_name() -> Cow<'static, str> {
        "PolicyName".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        let names = PolicyName::ALL.map(PolicyName::name);
        json_schema!({ "type": "string", "enum": names, "description": "A policy." })
    }
}

/// What may be collected; the words of `MIGRATE_VMA_SELECT_*`.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, PartialEq, Eq)]
#[serde(rename_all = "kebab-case")]
pub enum SelectFlag {
    /// What is in host memory.
    System,
    /// What is in frames of a `private` region.
    DevicePrivate,
    /// What is in frames of a `public` region.
    DevicePublic,
}

impl FromStr for SelectFlag {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "system" => Ok(Self::System),
            "device-private" => Ok(Self::DevicePrivate),
            "device-public" => Ok(Self::DevicePublic),
            _ => Err(format!("\"{text}\" is none of system, device-private, device-public")),
        }
    }
}

/// Where a migration goes: `"home"` or `"pool:N"`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum To {
    /// Host memory.
    Home,
    /// The pool of this region.
    Pool(u8),
}

impl fmt::Display for To {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Home => f.write_str("home"),
            Self::Pool(pool) => write!(f, "pool:{pool}"),
        }
    }
}

impl FromStr for To {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let pool = text.strip_prefix("pool:").and_then(|number| number.parse().ok());
        match (text, pool) {
            ("home", _) => Ok(Self::Home),
            (_, Some(pool)) => Ok(Self::Pool(pool)),
            _ => Err(format!("\"{text}\" is neither home nor pool:N")),
        }
    }
}

impl JsonSchema for To {
    fn schema_name() -> Cow<'static, str> {
        "To".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": "string",
            "pattern": "^(home|pool:[0-9]+)$",
            "description": "Where a migration goes: host memory, or the pool of a region."
        })
    }
}

impl Serialize for To {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for To {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        lenient(deserializer)
    }
}

/// A guest-physical address.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Hex(pub u64);

impl fmt::Display for Hex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.0)
    }
}

impl JsonSchema for Hex {
    fn schema_name() -> Cow<'static, str> {
        "Address".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": ["string", "integer"],
            "minimum": 0,
            "description": "A guest-physical address. In answers a hexadecimal text such as \
                            \"0x100000000\"; in requests also a number, or a text such as \
                            \"4G\"."
        })
    }
}

impl Serialize for Hex {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Hex {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        lenient(deserializer).map(|address: Address| Self(address.0))
    }
}

/// Guest-physical memory, from `base` on.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, PartialEq, Eq)]
#[serde(deny_unknown_fields)]
pub struct Range {
    /// First byte.
    pub base: Hex,
    /// Bytes.
    #[serde(deserialize_with = "size")]
    #[schemars(schema_with = "size_schema")]
    pub size: u64,
}

fn size_schema(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": ["integer", "string"],
        "minimum": 0,
        "description": "Bytes. In answers a number; in requests also a text such as \"64M\"."
    })
}

fn size<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
    lenient(deserializer).map(|size: Size| size.0)
}
