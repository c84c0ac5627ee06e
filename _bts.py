import subprocess, os, sys
from tests import servers
cl=[]
d,r=servers.start(cl.append)
print(d, r[:12])
print(subprocess.run([sys.executable,"-m","pytest","-q","tests/config/test_servers.py","tests/config/test_live_server.py"],env=os.environ|{"BOURSE_TEST_SERVERS":f"{d}|{r}"},capture_output=True,text=True).stdout[-200:])
for f in reversed(cl): f()
