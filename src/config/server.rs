//! `[server]`: where the broker listens and what it is called.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use ipnet::IpNet;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use super::value;

/// Longest node id in bytes.
pub const NODE_ID_BYTES_MAX: usize = 64;

/// The `[server]` section.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Server {
    /// Address to listen on; port 0 lets the system choose.
    #[serde(deserialize_with = "listen")]
    pub listen: SocketAddr,
    /// Name of this node, unique among the nodes that share a store.
    #[serde(deserialize_with = "node_id", serialize_with = "print_node_id")]
    pub node_id: NodeId,
    /// A request whose head takes longer is dropped.
    #[serde(
        deserialize_with = "value::duration::<_, 100, { 10 * value::MINUTE }>",
        serialize_with = "value::print_duration"
    )]
    pub header_timeout: Duration,
    /// Event streams over HTTP/1 without TLS are written to their sockets without the HTTP library.
    pub detach: bool,
    /// Networks whose hosts may say for whom they pass requests on.
    #[serde(default, deserialize_with = "networks")]
    pub trusted_proxies: Vec<IpNet>,
}

impl Server {
    /// Whether only this machine can connect.
    pub fn is_loopback(&self) -> bool {
        self.listen.ip().to_canonical().is_loopback()
    }
}

/// The name of a node: letters, digits, `.`, `_` and `-`, so that it can stand in a Redis key and in a header.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeId(Box<str>);

/// Why a text is no node id.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidNodeId {
    /// Empty, or longer than [`NODE_ID_BYTES_MAX`].
    #[error("a node id has 1 to {NODE_ID_BYTES_MAX} characters, {0:?} has {len}", len = .0.len())]
    Length(String),
    /// Contains a character that would need quoting somewhere.
    #[error(
        "node id {0:?} contains {1:?}: only the letters a-z and A-Z, digits, '.', '_' and '-' are allowed"
    )]
    Character(String, char),
}

impl NodeId {
    /// Validates an id from outside.
    pub fn parse(id: &str) -> Result<Self, InvalidNodeId> {
        if id.is_empty() || id.len() > NODE_ID_BYTES_MAX {
            return Err(InvalidNodeId::Length(id.to_owned()));
        }
        match id.chars().find(|c| !is_node_id_character(*c)) {
            Some(c) => Err(InvalidNodeId::Character(id.to_owned(), c)),
            None => Ok(Self(id.into())),
        }
    }

    /// An id for a node that was given none: the host's name without its domain, and a random part, since
    /// several nodes may run on one host.
    pub fn generate(hostname: &str, random: u32) -> Self {
        let label = hostname.split('.').next().unwrap_or_default();
        let mut id: String = label.chars().filter(|c| is_node_id_character(*c)).take(40).collect();
        if id.is_empty() {
            id.push_str("node");
        }
        Self(format!("{id}-{random:08x}").into())
    }

    /// The id as it was given.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

fn is_node_id_character(c: char) -> bool {
    c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-')
}

fn listen<'de, D: Deserializer<'de>>(deserializer: D) -> Result<SocketAddr, D::Error> {
    value::parsed(deserializer, |text| {
        text.parse().map_err(|_| {
            format!(
                "{text:?} is not an IP address and a port, as in \"127.0.0.1:8080\", \"0.0.0.0:8080\" or \"[::]:8080\""
            )
        })
    })
}

/// Networks, or single addresses.
fn networks<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<IpNet>, D::Error> {
    let texts = Vec::<String>::deserialize(deserializer)?;
    let parse = |text: &String| {
        let net = text.parse::<IpNet>().ok().or_else(|| text.parse::<IpAddr>().ok().map(IpNet::from));
        net.ok_or_else(|| {
            de::Error::custom(format!("{text:?} is no network, as in \"10.0.0.0/8\" or \"2001:db8::/32\""))
        })
    };
    texts.iter().map(parse).collect()
}

fn node_id<'de, D: Deserializer<'de>>(deserializer: D) -> Result<NodeId, D::Error> {
    value::parsed(deserializer, NodeId::parse)
}

fn print_node_id<S: Serializer>(id: &NodeId, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(id.as_str())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_generated_node_id_is_valid_whatever_the_host_is_called() {
        let cases = [
            ("web-1.example.com", "web-1-00c0ffee"),
            ("", "node-00c0ffee"),
            ("größe", "gre-00c0ffee"),
            ("日本", "node-00c0ffee"),
            (".hidden", "node-00c0ffee"),
        ];
        for (hostname, expected) in cases {
            let id = NodeId::generate(hostname, 0x00c0_ffee);
            assert_eq!(id.as_str(), expected);
            assert_eq!(NodeId::parse(id.as_str()), Ok(id));
        }
        let long = NodeId::generate(&"x".repeat(200), u32::MAX);
        assert_eq!(NodeId::parse(long.as_str()), Ok(long));
    }

    #[test]
    fn node_ids_that_would_need_quoting_are_refused() {
        for id in ["", "a b", "a{b", "a}b", "a:b", "a\r\nb", "ä", &"x".repeat(65)] {
            assert!(NodeId::parse(id).is_err(), "{id:?}");
        }
    }
}
