"""A stand-in for a home's router that speaks UPnP: it answers searches on loopback and keeps a table of ports.

It is written from the protocol (SSDP's search, a description, SOAP calls) and has not been held against a real router.
"""

import contextlib
import re
import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

GROUP, SSDP_PORT = "239.255.255.250", 1900
IGD = "urn:schemas-upnp-org:device:InternetGatewayDevice:1"
SERVICE = "urn:schemas-upnp-org:service:WANIPConnection:1"
DESCRIPTION = f"""<?xml version="1.0"?>
<root xmlns="urn:schemas-upnp-org:device-1-0"><specVersion><major>1</major><minor>0</minor></specVersion>
<device><deviceType>{IGD}</deviceType><friendlyName>stand-in</friendlyName><manufacturer>tests</manufacturer>
<modelName>stand-in</modelName><UDN>uuid:1</UDN><deviceList><device>
<deviceType>urn:schemas-upnp-org:device:WANDevice:1</deviceType><UDN>uuid:2</UDN>
<serviceList><service><serviceType>urn:schemas-upnp-org:service:WANCommonInterfaceConfig:1</serviceType>
<serviceId>urn:upnp-org:serviceId:WANCommonIFC1</serviceId><controlURL>/common</controlURL>
<eventSubURL>/events</eventSubURL><SCPDURL>/scpd</SCPDURL></service></serviceList><deviceList><device>
<deviceType>urn:schemas-upnp-org:device:WANConnectionDevice:1</deviceType><UDN>uuid:3</UDN><serviceList><service>
<serviceType>{SERVICE}</serviceType><serviceId>urn:upnp-org:serviceId:WANIPConn1</serviceId>
<controlURL>/control</controlURL><eventSubURL>/events</eventSubURL><SCPDURL>/scpd</SCPDURL>
</service></serviceList></device></deviceList></device></deviceList></device></root>"""


class Router:
    """What it says of itself, and what it was asked.

    Attributes:
        outside: the address that it calls its own on the internet.
        taken: outside ports that it refuses.
        forwarded: outside ports, and to where.
        never_ends: whether its description of itself never does.
    """

    def __init__(self, outside: str, taken: frozenset[int]) -> None:
        self.outside, self.taken = outside, taken
        self.forwarded: dict[int, tuple[str, int, int]] = {}
        self.never_ends = False

    def answer(self, action: str, body: str) -> tuple[int, str]:
        """A SOAP answer: its status and what stands in it."""
        if action == "GetStatusInfo":
            status = "<NewConnectionStatus>Connected</NewConnectionStatus><NewUptime>9</NewUptime>"
            return 200, f"{status}<NewLastConnectionError>ERROR_NONE</NewLastConnectionError>"
        if action == "GetExternalIPAddress":
            return 200, f"<NewExternalIPAddress>{self.outside}</NewExternalIPAddress>"
        if action == "AddPortMapping":
            said = {
                name: _field(body, name) for name in ("ExternalPort", "InternalPort", "InternalClient", "LeaseDuration")
            }
            outside = int(said["ExternalPort"])
            if outside in self.taken:
                return 500, "718"
            inside = (said["InternalClient"], int(said["InternalPort"]), int(said["LeaseDuration"]))
            self.forwarded[outside] = inside
            return 200, ""
        if action in ("GetSpecificPortMappingEntry", "DeletePortMapping"):
            outside = int(_field(body, "ExternalPort"))
            if outside not in self.forwarded:
                return 500, "714"
            if action == "DeletePortMapping":
                del self.forwarded[outside]
                return 200, ""
            client, port, lease_s = self.forwarded[outside]
            where = f"<NewInternalPort>{port}</NewInternalPort><NewInternalClient>{client}</NewInternalClient>"
            more = "<NewEnabled>1</NewEnabled><NewPortMappingDescription>hansa</NewPortMappingDescription>"
            return 200, f"{where}{more}<NewLeaseDuration>{lease_s}</NewLeaseDuration>"
        return 500, "401"


def _field(body: str, name: str) -> str:
    found = re.search(f"<New{name}>([^<]*)</New{name}>", body)
    return found.group(1) if found else ""


@contextmanager
def router_on_loopback(outside: str, taken: frozenset[int] = frozenset()) -> Iterator[Router]:
    """Answer searches and calls on loopback until the context ends. Raises ``OSError`` where there is no multicast."""
    router = Router(outside, taken)

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

        def _send(self, status: int, text: str) -> None:
            self.send_response(status)
            self.send_header("Content-Type", "text/xml")
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text.encode())

        def do_GET(self) -> None:
            if not router.never_ends:
                self._send(200, DESCRIPTION)
                return
            self.send_response(200)
            self.end_headers()
            with contextlib.suppress(OSError):
                many = DESCRIPTION.encode() * 500
                while True:
                    self.wfile.write(many)

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"])).decode()
            action = self.headers["SOAPAction"].strip('"').rpartition("#")[2]
            status, inner = router.answer(action, body)
            if status == 200:
                inner = f'<u:{action}Response xmlns:u="{SERVICE}">{inner}</u:{action}Response>'
            else:
                error = f"<errorCode>{inner}</errorCode><errorDescription>ConflictInMappingEntry</errorDescription>"
                detail = f'<detail><UPnPError xmlns="urn:schemas-upnp-org:control-1-0">{error}</UPnPError></detail>'
                inner = (
                    f"<s:Fault><faultcode>s:Client</faultcode><faultstring>UPnPError</faultstring>{detail}</s:Fault>"
                )
            envelope = "http://schemas.xmlsoap.org/soap/envelope/"
            self._send(
                status, f'<?xml version="1.0"?><s:Envelope xmlns:s="{envelope}"><s:Body>{inner}</s:Body></s:Envelope>'
            )

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server, _search_socket() as search:
        place = f"http://127.0.0.1:{server.server_address[1]}/desc.xml"
        threads = [
            threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True),
            threading.Thread(target=_answer_searches, args=(search, place), daemon=True),
        ]
        for thread in threads:
            thread.start()
        try:
            yield router
        finally:
            server.shutdown()
            search.close()
            for thread in threads:
                thread.join(5)


def _search_socket() -> socket.socket:
    search = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    try:
        search.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        search.bind((GROUP, SSDP_PORT))
        search.setsockopt(
            socket.IPPROTO_IP,
            socket.IP_ADD_MEMBERSHIP,
            struct.pack("4s4s", socket.inet_aton(GROUP), socket.inet_aton("127.0.0.1")),
        )
        search.settimeout(0.1)
    except OSError:
        search.close()
        raise
    return search


def _answer_searches(search: socket.socket, place: str) -> None:
    while True:
        try:
            wish, asker = search.recvfrom(2048)
        except TimeoutError:
            continue
        except OSError:
            return
        if wish.startswith(b"M-SEARCH"):
            lines = ("HTTP/1.1 200 OK", "CACHE-CONTROL: max-age=60", "EXT:", f"LOCATION: {place}", f"ST: {IGD}")
            found = "\r\n".join((*lines, f"USN: uuid:1::{IGD}", "", ""))
            search.sendto(found.encode(), asker)
