//! Origins: which site a request was made to, and whether a page belongs to it (RFC 6454).
//!
//! Neighbour: `config/cors.rs` knows the pages of other sites that may use this broker.

use http::header;
use http::request::Parts;

/// The site that a client addressed, as far as the request tells: host and port, without the scheme, which a
/// proxy that ends TLS takes away.
pub(super) struct Site(Option<String>);

impl Site {
    /// The site of a request.
    pub(super) fn of(request: &Parts) -> Self {
        let host = request.headers.get(header::HOST).and_then(|host| host.to_str().ok());
        let host = host.or_else(|| request.uri.authority().map(http::uri::Authority::as_str));
        Self(host.map(str::to_ascii_lowercase))
    }

    /// Whether a page of `origin`, as it stands in `Origin:`, belongs to the site.
    pub(super) fn is_origin(&self, origin: &str) -> bool {
        let Some((scheme, authority)) = origin.split_once("://") else { return false };
        let default_port = match scheme {
            "http" => ":80",
            "https" => ":443",
            _ => return false,
        };
        // Browsers leave out the scheme's own port, in both.
        let host = self.0.as_deref().map(|host| host.strip_suffix(default_port).unwrap_or(host));
        host == Some(authority)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_belongs_to_the_site_that_it_was_loaded_from() {
        let site = |host: &str| Site(Some(host.to_owned()));
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
        assert!(!Site(None).is_origin("https://app.example"));
    }
}
