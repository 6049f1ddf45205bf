//! From where and by which name a request came, where proxies stand between. What a proxy says counts only if it is one
//! that is trusted: anybody can write such a header.

use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;

use axum::extract::ConnectInfo;
use axum::http::{Extensions, HeaderMap, HeaderName, header};
use ipnet::IpNet;

const FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
const HOST: HeaderName = HeaderName::from_static("x-forwarded-host");

/// The networks of the proxies that are believed; none by default.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Proxies(Vec<IpNet>);

/// What is no network.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("expected networks such as 10.0.0.0/8 or addresses, separated by commas, got '{0}'")]
pub struct NoNetwork(String);

impl FromStr for Proxies {
    type Err = NoNetwork;

    /// ```
    /// use dbtcloud_server::forwarded::Proxies;
    /// let proxies: Proxies = "10.0.0.0/8, fd00::/8, 192.0.2.1".parse()?;
    /// assert!(proxies.contain(&"10.1.2.3".parse().unwrap()));
    /// assert!("10.0.0.0/33".parse::<Proxies>().is_err());
    /// # Ok::<(), dbtcloud_server::forwarded::NoNetwork>(())
    /// ```
    fn from_str(text: &str) -> Result<Self, NoNetwork> {
        let network = |text: &str| {
            let address = || text.parse::<IpAddr>().map(IpNet::from);
            text.parse::<IpNet>()
                .or_else(|_| address())
                .map_err(|_| NoNetwork(text.to_owned()))
        };
        let words = text.split(',').map(str::trim).filter(|word| !word.is_empty());
        words.map(network).collect::<Result<_, _>>().map(Self)
    }
}

impl Proxies {
    /// Whether this is the address of one.
    pub fn contain(&self, address: &IpAddr) -> bool {
        self.0.iter().any(|network| network.contains(address))
    }

    /// The networks as texts.
    pub fn networks(&self) -> impl Iterator<Item = String> {
        self.0.iter().map(ToString::to_string)
    }
}

/// The other end of the connection that a request came by.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Peer {
    address: IpAddr,
    secure: bool,
}

impl Peer {
    pub(crate) fn new(address: &SocketAddr, secure: bool) -> Self {
        Self {
            address: address.ip().to_canonical(),
            secure,
        }
    }

    /// Our own listeners tell it; an embedder's may tell its address.
    fn of(extensions: &Extensions) -> Option<Self> {
        let address = || extensions.get::<ConnectInfo<SocketAddr>>();
        let ours = extensions.get::<ConnectInfo<Self>>().map(|info| info.0);
        ours.or_else(|| address().map(|info| Self::new(&info.0, false)))
    }
}

/// From where and by which name a request came, as far as it can be believed.
#[derive(Clone, Debug)]
pub(crate) struct Origin {
    pub(crate) client: Option<IpAddr>,
    secure: bool,
    host: Option<String>,
    /// The addresses it came through, the client's first.
    hops: Vec<IpAddr>,
}

impl Origin {
    pub(crate) fn of(headers: &HeaderMap, extensions: &Extensions, trusted: &Proxies) -> Self {
        let peer = Peer::of(extensions);
        let host = headers.get(header::HOST).and_then(|host| host.to_str().ok());
        let mut origin = Self {
            client: peer.map(|peer| peer.address),
            secure: peer.is_some_and(|peer| peer.secure),
            host: host.filter(|host| is_host(host)).map(ToOwned::to_owned),
            hops: Vec::new(),
        };
        let Some(peer) = peer else { return origin };
        if trusted.contain(&peer.address) {
            let said = Said::of(headers);
            origin.hops = said.hops;
            origin.secure = said.secure.unwrap_or(origin.secure);
            origin.host = said.host.or(origin.host);
        }
        origin.hops.push(peer.address);
        // The first from the right that nobody vouches for is who asked: what is left of it, that one said itself.
        let client = origin.hops.iter().rev().find(|hop| !trusted.contain(hop));
        origin.client = client.or(origin.hops.first()).copied();
        origin
    }

    /// Scheme and host by which it was asked.
    pub(crate) fn base(&self) -> String {
        format!("{}://{}", self.scheme(), self.host.as_deref().unwrap_or("localhost"))
    }

    fn scheme(&self) -> &'static str {
        if self.secure { "https" } else { "http" }
    }

    /// Writes over whatever stands there what the next server may believe.
    #[cfg(any(feature = "cli", test))]
    pub(crate) fn write(&self, headers: &mut HeaderMap) {
        headers.remove(header::FORWARDED);
        let hops: Vec<_> = self.hops.iter().map(ToString::to_string).collect();
        let hops = Some(hops.join(", ")).filter(|hops| !hops.is_empty());
        for (name, value) in [
            (FOR, hops.as_deref()),
            (PROTO, Some(self.scheme())),
            (HOST, self.host.as_deref()),
        ] {
            headers.remove(&name);
            if let Some(value) = value.and_then(|value| value.parse().ok()) {
                headers.insert(name, value);
            }
        }
    }
}

/// What a proxy says. `Forwarded` (RFC 7239) counts only without the others: many pass on what their clients sent of it.
#[derive(Default)]
struct Said {
    hops: Vec<IpAddr>,
    secure: Option<bool>,
    host: Option<String>,
}

impl Said {
    fn of(headers: &HeaderMap) -> Self {
        if [FOR, PROTO, HOST].iter().any(|name| headers.contains_key(name)) {
            let last = |name| words(headers, name).pop();
            return Self::read(
                words(headers, FOR).into_iter(),
                last(PROTO).as_deref(),
                last(HOST).as_deref(),
            );
        }
        let elements = words(headers, header::FORWARDED);
        let last = elements.last().map_or("", String::as_str);
        Self::read(
            elements
                .iter()
                .map(|element| part(element, "for").unwrap_or_default().to_owned()),
            part(last, "proto"),
            part(last, "host"),
        )
    }

    /// What is not understood is as if it were not said; of addresses, also what is left of one that is not.
    fn read(hops: impl DoubleEndedIterator<Item = String>, proto: Option<&str>, host: Option<&str>) -> Self {
        let mut hops: Vec<_> = hops.rev().map_while(|hop| address(&hop)).collect();
        hops.reverse();
        Self {
            hops,
            secure: proto.and_then(|proto| match proto.to_ascii_lowercase().as_str() {
                "https" => Some(true),
                "http" => Some(false),
                _ => None,
            }),
            host: host.filter(|host| is_host(host)).map(ToOwned::to_owned),
        }
    }
}

/// The values of a header that is a list; one that is not text is an empty one.
fn words(headers: &HeaderMap, name: HeaderName) -> Vec<String> {
    let lines = headers
        .get_all(name)
        .into_iter()
        .map(|line| line.to_str().unwrap_or_default());
    lines
        .flat_map(|line| line.split(','))
        .map(|word| word.trim().to_owned())
        .collect()
}

/// A part of an element of `Forwarded`.
fn part<'a>(element: &'a str, name: &str) -> Option<&'a str> {
    let mut parts = element.split(';').filter_map(|part| part.split_once('='));
    let (_, value) = parts.find(|(key, _)| key.trim().eq_ignore_ascii_case(name))?;
    Some(value.trim().trim_matches('"'))
}

/// An address, with a port or without.
fn address(text: &str) -> Option<IpAddr> {
    let bare = text.strip_prefix('[').and_then(|text| text.strip_suffix(']'));
    let address = bare.unwrap_or(text).parse::<IpAddr>();
    let address = address.or_else(|_| text.parse::<SocketAddr>().map(|address| address.ip()));
    address.ok().map(|address| address.to_canonical())
}

/// Whether this can stand in a URL as its host, with a port or without.
fn is_host(text: &str) -> bool {
    !text.is_empty() && text.chars().all(|c| c.is_ascii_alphanumeric() || ".:-_[]".contains(c))
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;

    use super::*;

    /// What is believed of a request from this address with these headers.
    fn origin(peer: &str, headers: &[(&str, &str)]) -> Origin {
        let trusted = "10.0.0.0/8, fd00::/8".parse().unwrap();
        let mut map = HeaderMap::new();
        map.insert(header::HOST, HeaderValue::from_static("inside:8080"));
        for (name, value) in headers {
            map.append(name.parse::<HeaderName>().unwrap(), value.parse().unwrap());
        }
        let mut extensions = Extensions::new();
        if !peer.is_empty() {
            let peer: SocketAddr = peer.parse().unwrap();
            extensions.insert(ConnectInfo(peer));
        }
        Origin::of(&map, &extensions, &trusted)
    }

    #[track_caller]
    fn believed(peer: &str, headers: &[(&str, &str)], client: &str, base: &str) {
        let origin = origin(peer, headers);
        let said = origin.client.map_or(String::new(), |client| client.to_string());
        assert_eq!((said.as_str(), origin.base().as_str()), (client, base), "{headers:?}");
    }

    #[test]
    fn only_a_trusted_proxy_is_believed() {
        let said = [
            ("x-forwarded-for", "203.0.113.9"),
            ("x-forwarded-proto", "https"),
            ("x-forwarded-host", "dbt.example"),
        ];
        let inside = "http://inside:8080";
        believed("10.0.0.1:7", &said, "203.0.113.9", "https://dbt.example");
        believed("[::ffff:10.0.0.1]:7", &said, "203.0.113.9", "https://dbt.example");
        believed("[fd00::1]:7", &said, "203.0.113.9", "https://dbt.example");
        believed("192.0.2.1:7", &said, "192.0.2.1", inside);
        believed("", &said, "", inside);
        let standard = [("forwarded", "for=\"[2001:db8::1]:4\";Proto=https;host=dbt.example")];
        believed("10.0.0.1:7", &standard, "2001:db8::1", "https://dbt.example");
        believed("192.0.2.1:7", &standard, "192.0.2.1", inside);
        // A client's own `Forwarded` behind a proxy that writes the others.
        let both = [standard[0], said[0]];
        believed("10.0.0.1:7", &both, "203.0.113.9", inside);
    }

    #[test]
    fn a_client_cannot_put_itself_before_the_proxies() {
        let inside = "http://inside:8080";
        for (hops, client) in [
            ("1.1.1.1, 203.0.113.9", "203.0.113.9"),
            ("1.1.1.1, 203.0.113.9, 10.2.2.2", "203.0.113.9"),
            ("10.3.3.3, 10.2.2.2", "10.3.3.3"),
            ("203.0.113.9:4711", "203.0.113.9"),
            ("::ffff:203.0.113.9", "203.0.113.9"),
            ("203.0.113.9, unknown, 10.2.2.2", "10.2.2.2"),
            ("203.0.113.9, ", "10.0.0.1"),
            ("", "10.0.0.1"),
            ("<script>", "10.0.0.1"),
        ] {
            believed("10.0.0.1:7", &[("x-forwarded-for", hops)], client, inside);
        }
        let lines = [("x-forwarded-for", "1.1.1.1"), ("x-forwarded-for", "203.0.113.9")];
        believed("10.0.0.1:7", &lines, "203.0.113.9", inside);
    }

    #[test]
    fn what_is_no_scheme_or_host_is_as_if_it_were_not_there() {
        for headers in [
            ("x-forwarded-proto", "javascript"),
            ("x-forwarded-proto", ""),
            ("x-forwarded-host", "evil.example/path"),
            ("x-forwarded-host", "a b"),
            ("x-forwarded-host", ""),
            ("x-forwarded-host", "u@evil.example"),
            ("forwarded", ";;=,\"for"),
            ("forwarded", "host=\"a/b\";proto=ftp"),
        ] {
            believed("10.0.0.1:7", &[headers], "10.0.0.1", "http://inside:8080");
        }
    }

    #[test]
    fn what_is_written_is_what_is_believed() {
        let written = |peer: &str| {
            let said = [
                ("x-forwarded-for", "bad, 203.0.113.9"),
                ("x-forwarded-proto", "https"),
                ("forwarded", "for=1.1.1.1"),
            ];
            let mut headers = HeaderMap::new();
            for (name, value) in said {
                headers.insert(name, HeaderValue::from_static(value));
            }
            origin(peer, &said).write(&mut headers);
            let mut lines: Vec<_> = headers
                .iter()
                .map(|(name, value)| format!("{name}: {}", value.to_str().unwrap()))
                .collect();
            lines.sort();
            lines
        };
        let host = "x-forwarded-host: inside:8080";
        assert_eq!(
            written("10.0.0.1:7"),
            [
                "x-forwarded-for: 203.0.113.9, 10.0.0.1",
                host,
                "x-forwarded-proto: https"
            ]
        );
        assert_eq!(
            written("192.0.2.1:7"),
            ["x-forwarded-for: 192.0.2.1", host, "x-forwarded-proto: http"]
        );
        assert_eq!(written(""), [host, "x-forwarded-proto: http"]);
    }
}
