"""Holds what glmd tells Home Assistant to Home Assistant itself.

    check.py PORT NODE GLMD_PID GOLDEN [-v]

PORT is that of a broker on 127.0.0.1 with a glmd named NODE. The discovery
payload is taken from the broker, held to the schemas of Home Assistant's MQTT
integration (the strict ones of its YAML, which know no key too many) and to
the copy in GOLDEN; then Home Assistant's core connects to the broker, finds
the device by itself, asks it, and presses its buttons. -v shows its log.
"""

import asyncio
import importlib
import json
import logging
import os
import signal
import socket
import sys
import tempfile
from pathlib import Path

import voluptuous as vol
from homeassistant import auth, config_entries, loader
from homeassistant.components import mqtt as integration
from homeassistant.components.mqtt import discovery, schemas
from homeassistant.core import CoreState, HomeAssistant
from homeassistant.helpers import (
    area_registry,
    category_registry,
    condition,
    device_registry,
    entity,
    entity_registry,
    floor_registry,
    frame,
    issue_registry,
    label_registry,
    restore_state,
    template,
    translation,
    trigger,
)
from homeassistant.helpers.storage import get_internal_store_manager
from homeassistant.setup import async_setup_component
from paho.mqtt import client as paho
from paho.mqtt import subscribe

# Longer than anything here takes; it only ends a test that hangs.
LIMIT = 60

passed = failed = 0


def check(text, good, why=""):
    global passed, failed
    if good:
        passed += 1
        print(f"ok      {text}")
    else:
        failed += 1
        print(f"FAILED  {text}: {why}")


def retained(port, topic):
    """The message that the broker keeps on a topic."""
    return subscribe.simple(
        topic, hostname="127.0.0.1", port=port, protocol=paho.MQTTv5, keepalive=LIMIT
    ).payload.decode()


def components(payload):
    """The device and its components as the integration spells them out."""
    device = discovery.MQTTDiscoveryPayload(json.loads(payload))
    discovery._replace_all_abbreviations(device)
    schemas.DEVICE_DISCOVERY_SCHEMA(device)
    for name, component in device["components"].items():
        component = discovery.MQTTDiscoveryPayload(component)
        platform = component.pop("platform")
        component["device"] = device["device"]
        discovery._merge_common_device_options(component, device)
        yield name, platform, component


def hold_to_schemas(payload):
    try:
        found = list(components(payload))
    except vol.Invalid as error:
        check("the device is what the schema wants", False, error)
        return
    check("the device is what the schema wants", True)
    for name, platform, component in found:
        module = importlib.import_module(f"homeassistant.components.mqtt.{platform}")
        try:
            module.PLATFORM_SCHEMA_MODERN(component)
            module.DISCOVERY_SCHEMA(dict(component, origin={"name": "glmd"}))
        except vol.Invalid as error:
            check(f"{platform} {name} is what the schema wants", False, error)
        else:
            check(f"{platform} {name} is what the schema wants", True)


class Complaints(logging.Handler):
    """What Home Assistant logs about us."""

    def __init__(self):
        super().__init__(logging.WARNING)
        self.lines = []

    def emit(self, record):
        about = ("homeassistant.components.mqtt", "homeassistant.helpers.template")
        if record.name.startswith(about) or record.levelno >= logging.ERROR:
            self.lines.append(f"{record.name}: {record.getMessage()}")


async def start(folder, port):
    """Home Assistant's core with nothing but what its MQTT integration needs."""
    (Path(folder) / "configuration.yaml").touch()
    hass = HomeAssistant(str(folder))
    hass.config.skip_pip = True
    loader.async_setup(hass)
    hass.config_entries = config_entries.ConfigEntries(hass, {})
    for part in (entity, frame, template, translation):
        part.async_setup(hass)
    registries = (
        area_registry, category_registry, device_registry, entity_registry,
        floor_registry, issue_registry, label_registry, restore_state,
    )  # fmt: skip
    await asyncio.gather(
        get_internal_store_manager(hass).async_initialize(),
        *(registry.async_load(hass) for registry in registries),
        hass.config_entries.async_initialize(),
        condition.async_setup(hass),
        trigger.async_setup(hass),
    )
    hass.auth = await auth.auth_manager_from_config(hass, [], [])
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        web = {"http": {"server_host": "127.0.0.1", "server_port": free.getsockname()[1]}}
    assert await async_setup_component(hass, "http", web)
    hass.set_state(CoreState.running)
    broker = {"broker": "127.0.0.1", "port": port}
    flow = await hass.config_entries.flow.async_init("mqtt", context={"source": "user"})
    result = await hass.config_entries.flow.async_configure(flow["flow_id"], broker)
    assert result["type"] == "create_entry", result
    return hass


async def until(ready):
    for _ in range(LIMIT * 10):
        if value := ready():
            return value
        await asyncio.sleep(0.1)
    return ready()


async def live(port, node, pid, payload):
    wanted = {
        component["unique_id"]: name for name, _, component in components(payload)
    }
    logging.basicConfig(level=logging.DEBUG if "-v" in sys.argv else logging.CRITICAL)
    complaints = Complaints()
    logging.getLogger().addHandler(complaints)
    with tempfile.TemporaryDirectory() as folder:
        hass = await start(folder, port)
        hold_to_schemas(payload)
        entities = entity_registry.async_get(hass).entities

        def found():
            return {wanted[e.unique_id]: e.entity_id for e in entities.values() if e.unique_id in wanted}

        def state(name):
            state = hass.states.get(found().get(name, "no.such"))
            return state and state.state

        await until(lambda: len(found()) == len(wanted))
        missing = set(wanted.values()) - set(found())
        check(f"all {len(wanted)} entities are there", not missing, missing)
        named = [d.name for d in device_registry.async_get(hass).devices.values()]
        check("the device has its name", named == [f"glmd {node}"], named)
        await until(lambda: state("level") in ("green", "yellow", "orange", "red", "black"))
        for name in ("level", "queue", "speed", "headroom", "phase"):
            known = state(name) not in (None, "unknown", "unavailable")
            check(f"{name} is known", known, state(name))
        check("short of memory is on or off", state("problem") in ("on", "off"), state("problem"))

        said = []
        await integration.async_subscribe(
            hass, f"glmd/{node}/response/+", lambda m: said.append(json.loads(m.payload)), 1
        )
        for name, domain, service, key, text, answer in (
            ("ask", "notify", "send_message", "message",
             "Failed to [MASK] to the server.", "Failed to connect to the server."),
            ("type", "text", "set_value", "value",
             'Enter the IP [MASK] of your "bridge".', 'Enter the IP address of your "bridge".'),
        ):  # fmt: skip
            await hass.services.async_call(
                domain, service, {"entity_id": found()[name], key: text}, blocking=True
            )
            await until(lambda: state("answer") == answer)
            check(f"{domain}.{service} is answered", state("answer") == answer, state("answer"))
        # From here on the subscription is made, too.
        await until(lambda: said)
        whole = hass.states.get(found()["answer"]).attributes
        check("the whole answer is in the attributes", "blanks" in whole, whole)

        for button, status, phase in (("unload", "unloaded", "unloaded"), ("reload", "reloaded", "ready")):
            said.clear()
            await hass.services.async_call(
                "button", "press", {"entity_id": found()[button]}, blocking=True
            )
            await until(lambda: said)
            good = said and said[0]["status"] == "ok" and said[0]["data"]["status"] == status
            check(f"the button {button} does it", good, said)
            await until(lambda: state("phase") == phase)
            check(f"the phase becomes {phase}", state("phase") == phase, state("phase"))

        os.kill(pid, signal.SIGTERM)
        await until(lambda: state("level") == "unavailable")
        gone = {state(name) for name in wanted.values()}
        check("entities of a node that ended are unavailable", gone == {"unavailable"}, gone)
        check("Home Assistant has nothing to complain about", not complaints.lines, complaints.lines)
        await hass.async_stop(force=True)


def main():
    port, node, pid, golden = int(sys.argv[1]), sys.argv[2], int(sys.argv[3]), Path(sys.argv[4])
    payload = retained(port, f"homeassistant/device/glmd_{node}/config")
    published, expected = json.loads(payload), json.loads(golden.read_text())
    check(f"it is {golden.name}", published == expected, json.dumps(published, indent=2, ensure_ascii=False))
    asyncio.run(live(port, node, pid, payload))
    print(f"{passed} passed, {failed} failed")
    return failed > 0


if __name__ == "__main__":
    sys.exit(main())
