//! Request and response types shared by the Unix socket, MQTT and `glmctl`.
