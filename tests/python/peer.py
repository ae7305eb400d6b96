"""A peer made of the stock Python library, for the interoperability tests.

Commands come as lines of JSON on standard input, answers go as lines of JSON to standard output:

  {"do": "bind"|"connect", "port": P}        -> {"done": "bind"|"connect"}
  {"do": "send", "count": N, "prefix": P}    -> {"done": "send"}   P0 ... P(N-1), once a peer is there
  {"do": "receive", "count": N}              -> {"messages": [...], "identities": [...]}   (texts; hex, each once)
  {"do": "collect", "idle": S}               -> {"messages": [...]}   all that comes, until none has for S seconds
  {"do": "echo", "count": N}                 -> {"done": "echo"}   each back to the peer that it came from
  {"do": "identity"}                         -> {"identity": hex}
  {"do": "pending"}                          -> {"pending": messages that were not acknowledged}
  {"do": "close"}                            -> {"done": "close"}, and the socket is closed

The end of standard input ends the program.
"""

import argparse
import asyncio
import json
import logging
import sys

from aiomsg import DeliveryGuarantee, SendMode, Søcket


async def obey(socket, command):
    do = command["do"]
    if do == "bind":
        await socket.bind("127.0.0.1", command["port"])
    elif do == "connect":
        await socket.connect("127.0.0.1", command["port"])
    elif do == "send":
        await socket.at_least_one_connection.wait()
        for index in range(command["count"]):
            await socket.send(f"{command['prefix']}{index}".encode())
    elif do == "receive":
        messages, identities = [], set()
        for _ in range(command["count"]):
            identity, message = await socket.recv_identity()
            messages.append(message.decode())
            identities.add(identity.hex())
        return {"messages": messages, "identities": sorted(identities)}
    elif do == "collect":
        messages = []
        while True:
            try:
                message = await asyncio.wait_for(socket.recv(), command["idle"])
            except asyncio.TimeoutError:
                return {"messages": messages}
            messages.append(message.decode())
    elif do == "echo":
        for _ in range(command["count"]):
            identity, message = await socket.recv_identity()
            await socket.send(message, identity=identity)
    elif do == "identity":
        return {"identity": socket.identity.hex()}
    elif do == "pending":
        return {"pending": len(socket.waiting_for_acks)}
    elif do == "close":
        await socket.close()
    else:
        raise ValueError(f"no command {do!r}")
    return {"done": do}


async def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--mode", choices=["publish", "roundrobin"], required=True)
    parser.add_argument("--delivery", choices=["at-most-once", "at-least-once"], default="at-most-once")
    options = parser.parse_args()
    mode = {"publish": SendMode.PUBLISH, "roundrobin": SendMode.ROUNDROBIN}[options.mode]
    delivery = {
        "at-most-once": DeliveryGuarantee.AT_MOST_ONCE,
        "at-least-once": DeliveryGuarantee.AT_LEAST_ONCE,
    }[options.delivery]
    socket = Søcket(send_mode=mode, delivery_guarantee=delivery)
    loop = asyncio.get_running_loop()
    while line := await loop.run_in_executor(None, sys.stdin.readline):
        print(json.dumps(await obey(socket, json.loads(line))), flush=True)


if __name__ == "__main__":
    logging.disable(logging.CRITICAL)
    asyncio.run(main())
