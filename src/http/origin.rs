//! Origins: which site a request was made to, and whether a page belongs to it (RFC 6454).
//!
//! Neighbour: `config/cors.rs` knows the pages of other sites that may use this broker.

use http::header;
use http::request::Parts;
use http::uri::Scheme;

/// The site that a client addressed, as far as the request tells.
pub(super) struct Site {
    /// Host, and port where it is not the scheme's own.
    host: Option<String>,
    /// `None` where a proxy that is not known may have ended TLS: then either is taken.
    scheme: Option<Scheme>,
}

impl Site {
    /// The site of a request that came over this scheme, if that is known.
    pub(super) fn of(request: &Parts, scheme: Option<Scheme>) -> Self {
        let host = request.headers.get(header::HOST).and_then(|host| host.to_str().ok());
        let host = host.or_else(|| request.uri.authority().map(http::uri::Authority::as_str));
        Self { host: host.map(str::to_ascii_lowercase), scheme }
    }

    /// Whether a page of `origin`, as it stands in `Origin:`, belongs to the site.
    pub(super) fn is_origin(&self, origin: &str) -> bool {
        let Some((scheme, authority)) = origin.split_once("://") else { return false };
        let default_port = match scheme {
            "http" => ":80",
            "https" => ":443",
            _ => return false,
        };
        if self.scheme.as_ref().is_some_and(|known| known.as_str() != scheme) {
            return false;
        }
        // Browsers leave out the scheme's own port, in both.
        let host = self.host.as_deref().map(|host| host.strip_suffix(default_port).unwrap_or(host));
        host == Some(authority)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_belongs_to_the_site_that_it_was_loaded_from() {
        let site = |host: &str| Site { host: Some(host.to_owned()), scheme: None };
        for (host, origin) in [
            ("app.example", "https://app.example"),
            ("app.example:443", "https://app.example"),
            ("localhost:8080", "http://localhost:8080"),
            ("[::1]:8080", "http://[::1]:8080"),
        ] {
            assert!(site(host).is_origin(origin), "{host} {origin}");
        }
        for (host, origin) in [
            ("app.example", "https://evil.example"),
            ("app.example", "https://app.example.evil.example"),
            ("app.example", "https://app.example:8443"),
            ("app.example:80", "https://app.example"),
            ("app.example", "null"),
            ("app.example", "app.example"),
            ("null", "null"),
            ("app.example", "file://app.example"),
        ] {
            assert!(!site(host).is_origin(origin), "{host} {origin}");
        }
        assert!(!Site { host: None, scheme: None }.is_origin("https://app.example"));
    }

    /// A page that was loaded without TLS may be anybody's on the way. Seen to fail when the scheme is passed over.
    #[test]
    fn a_page_without_tls_is_no_page_of_a_site_with_it() {
        let host = || Some("app.example".to_owned());
        let (with, without) = ("https://app.example", "http://app.example");
        let secure = Site { host: host(), scheme: Some(Scheme::HTTPS) };
        assert!(secure.is_origin(with) && !secure.is_origin(without));
        let plain = Site { host: host(), scheme: Some(Scheme::HTTP) };
        assert!(plain.is_origin(without) && !plain.is_origin(with));
    }
}
