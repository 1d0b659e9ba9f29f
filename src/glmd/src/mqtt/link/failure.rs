//! Why a connection could not be made or kept, and what an operator can do about it. Pure.

use std::io;

use rustls::{AlertDescription, CertificateError, Error as Tls};

use super::{Lost, Meaning};

/// What an error of the stream means.
pub(super) fn of_stream(error: &io::Error) -> Lost {
    // rustls hides behind the error of the stream that it wraps.
    match error.get_ref().and_then(|inner| inner.downcast_ref()) {
        Some(tls) => of_tls(tls),
        None => Lost {
            reason: error.to_string(),
            meaning: Meaning::Gone,
        },
    }
}

/// What an error of TLS means.
pub(super) fn of_tls(error: &Tls) -> Lost {
    let (advice, meaning) = match error {
        Tls::InvalidCertificate(reason) => of_their_certificate(reason),
        Tls::AlertReceived(alert) => of_their_alert(*alert),
        Tls::InvalidMessage(_) => (
            "the broker does not speak TLS on this port; see `mqtt.broker`",
            Meaning::Refused,
        ),
        Tls::PeerIncompatible(_) => (
            "the broker speaks no version of TLS from 1.2 on",
            Meaning::Refused,
        ),
        Tls::NoApplicationProtocol => ("see `mqtt.alpn`", Meaning::Refused),
        _ => ("TLS failed", Meaning::Refused),
    };
    Lost {
        reason: format!("{advice} ({error})"),
        meaning,
    }
}

/// Why we do not trust the broker.
const fn of_their_certificate(reason: &CertificateError) -> (&'static str, Meaning) {
    match reason {
        // A new authority may have the name of the old one; then it is the signature that does not fit.
        CertificateError::UnknownIssuer | CertificateError::BadSignature => (
            "an unknown authority has signed the broker's certificate; name it in `mqtt.ca_file`",
            Meaning::Refused,
        ),
        CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => (
            "the broker's certificate is for another name than that in `mqtt.broker`",
            Meaning::Refused,
        ),
        // A board without a clock of its own starts in the past, and learns the time from the network.
        CertificateError::NotValidYet
        | CertificateError::NotValidYetContext { .. }
        | CertificateError::Expired
        | CertificateError::ExpiredContext { .. } => (
            "the broker's certificate is not valid at the time that the clock shows",
            Meaning::Gone,
        ),
        _ => ("the broker's certificate is not good", Meaning::Refused),
    }
}

/// Why the broker does not trust us.
const fn of_their_alert(alert: AlertDescription) -> (&'static str, Meaning) {
    let advice = match alert {
        AlertDescription::CertificateRequired | AlertDescription::NoCertificate => {
            "the broker wants a client certificate; set `mqtt.cert_file` and `mqtt.key_file`"
        }
        // What brokers say in TLS 1.2 when the certificate is missing.
        AlertDescription::HandshakeFailure => {
            "the broker ends the handshake; it may want a client certificate (`mqtt.cert_file`)"
        }
        AlertDescription::UnknownCA
        | AlertDescription::BadCertificate
        | AlertDescription::UnsupportedCertificate
        | AlertDescription::CertificateRevoked
        | AlertDescription::CertificateExpired
        | AlertDescription::CertificateUnknown
        | AlertDescription::AccessDenied
        | AlertDescription::DecryptError => {
            "the broker does not take the client certificate in `mqtt.cert_file`"
        }
        AlertDescription::NoApplicationProtocol => {
            "the broker knows none of the protocols in `mqtt.alpn`"
        }
        AlertDescription::UnrecognisedName => "the broker does not know the name in `mqtt.broker`",
        AlertDescription::ProtocolVersion => "the broker speaks no version of TLS from 1.2 on",
        // It closes, or has a trouble of its own.
        AlertDescription::CloseNotify
        | AlertDescription::UserCanceled
        | AlertDescription::InternalError => return ("the broker hangs up", Meaning::Gone),
        _ => "the broker ends TLS",
    };
    (advice, Meaning::Refused)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wrapped(error: Tls) -> Lost {
        of_stream(&io::Error::new(io::ErrorKind::InvalidData, error))
    }

    #[test]
    fn an_operator_is_told_which_key_to_set() {
        for (error, key) in [
            (
                Tls::InvalidCertificate(CertificateError::UnknownIssuer),
                "mqtt.ca_file",
            ),
            (
                Tls::InvalidCertificate(CertificateError::NotValidForName),
                "mqtt.broker",
            ),
            (
                Tls::AlertReceived(AlertDescription::CertificateRequired),
                "mqtt.cert_file",
            ),
            (
                Tls::AlertReceived(AlertDescription::UnknownCA),
                "mqtt.cert_file",
            ),
            (
                Tls::AlertReceived(AlertDescription::NoApplicationProtocol),
                "mqtt.alpn",
            ),
        ] {
            let lost = wrapped(error);
            assert_eq!(lost.meaning, Meaning::Refused, "{}", lost.reason);
            assert!(lost.reason.contains(key), "{}", lost.reason);
        }
    }

    #[test]
    fn what_passes_by_itself_is_tried_again_soon() {
        let reset = io::Error::from(io::ErrorKind::ConnectionReset);
        assert_eq!(of_stream(&reset).meaning, Meaning::Gone);
        for error in [
            Tls::InvalidCertificate(CertificateError::NotValidYet),
            Tls::InvalidCertificate(CertificateError::Expired),
            Tls::AlertReceived(AlertDescription::CloseNotify),
        ] {
            assert_eq!(wrapped(error).meaning, Meaning::Gone);
        }
    }
}
