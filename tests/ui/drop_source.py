"""What a file manager does when files are dragged onto a window: the XDND protocol, version 5, from the other side.

drop_source.py X Y URI ...    prints whether the window at that place took them: accepted or refused
"""

import sys
import time

from Xlib import X, display
from Xlib.protocol import event

VERSION, PATIENCE = 5, 20.0


class DropSource:
    """Offers files to the window at a place of the screen, and hands them over if it wants them."""

    def __init__(self, x: int, y: int, uris: list[str]) -> None:
        self.display = display.Display()
        self.atom, self.place, self.uris = self.display.intern_atom, (x << 16) | y, uris
        screen = self.display.screen()
        self.window = screen.root.create_window(0, 0, 1, 1, 0, screen.root_depth)
        self.window.set_selection_owner(self.atom("XdndSelection"), X.CurrentTime)
        target = self.find(screen.root, x, y)
        assert target is not None, "no window there takes files"
        self.target = target

    def find(self, window, x: int, y: int):
        """The window at a place that says it knows the protocol."""
        if window.get_full_property(self.atom("XdndAware"), X.AnyPropertyType):
            return window
        for child in reversed(window.query_tree().children):
            box = child.get_geometry()
            inside = box.x <= x < box.x + box.width and box.y <= y < box.y + box.height
            found = inside and child.get_attributes().map_state == X.IsViewable
            if found and (target := self.find(child, x - box.x, y - box.y)):
                return target
        return None

    def send(self, kind: str, *data: int) -> None:
        """Sends one message of the protocol."""
        values = [self.window.id, *data, *[0] * (4 - len(data))]
        self.target.send_event(event.ClientMessage(window=self.target, client_type=self.atom(kind), data=(32, values)))
        self.display.flush()

    def wait(self, kind: str) -> list[int]:
        """Answers requests for the files until a message comes; returns what it holds."""
        end = time.monotonic() + PATIENCE
        while time.monotonic() < end:
            if not self.display.pending_events():
                time.sleep(0.01)
                continue
            one = self.display.next_event()
            if one.type == X.SelectionRequest:
                self.hand_over(one)
            elif one.type == X.ClientMessage and one.client_type == self.atom(kind):
                return list(one.data[1])
        raise TimeoutError(kind)

    def hand_over(self, request) -> None:
        """Writes the files where the window wants them."""
        files = "".join(f"{uri}\r\n" for uri in self.uris).encode()
        request.requestor.change_property(request.property, request.target, 8, files)
        request.requestor.send_event(
            event.SelectionNotify(
                time=request.time, requestor=request.requestor, selection=request.selection, target=request.target,
                property=request.property,
            )
        )  # fmt: skip
        self.display.flush()

    def drop(self) -> bool:
        """Drags and lets go; whether the window took the files."""
        self.send("XdndEnter", VERSION << 24, self.atom("text/uri-list"))
        self.send("XdndPosition", 0, self.place, X.CurrentTime, self.atom("XdndActionCopy"))
        _, flags, *_ = self.wait("XdndStatus")
        if not flags & 1:
            self.send("XdndLeave")
            return False
        self.send("XdndDrop", 0, X.CurrentTime)
        # what was done with them: nothing, if they were refused
        _, _, action, *_ = self.wait("XdndFinished")
        return bool(action)


if __name__ == "__main__":
    source = DropSource(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3:])
    print("accepted" if source.drop() else "refused")
