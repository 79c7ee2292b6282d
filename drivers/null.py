import hashlib
import os
import time
from drivers import base
from drivers.base import FaultKind, DriverFault, read_ints

SLOT=8
def slot_digest(token, position, prev):
    return hashlib.blake2b(prev + token.to_bytes(4,"little",signed=True)+position.to_bytes(4,"little"), digest_size=SLOT).digest()
def draw(history, temperature, seed, position, vocab):
    h=hashlib.blake2b(history,digest_size=8)
    if temperature>0: h.update(seed.to_bytes(8,"little")+position.to_bytes(4,"little"))
    return int.from_bytes(h.digest(),"little")%vocab

class NullDriver:
    def __init__(self, emit, bulk):
        self.emit=emit; self.bulk=bulk; self.last={}
    def hello(self,h):
        if h.major!=base.ABI[0] or h.schema!=base.schema_hash(): raise DriverFault(FaultKind.UNSUPPORTED,"abi")
        self.epoch=h.epoch
        return base.Ready(*base.ABI,base.schema_hash(),h.epoch,"null",h.device,os.getpid(),"digests",1<<30,1<<30,("float32","bfloat16"),(),"none")
    def load(self,l):
        name,_,opts=l.path.partition(":")
        if name!="null": raise DriverFault(FaultKind.MODEL_LOAD,f"the null driver has only the builtin null, not {l.path}")
        o=dict(vocab=512,step_us=0,token_us=0,eos=-1,max_ctx=8192)
        for kv in filter(None,opts.split(",")):
            k,v=kv.split("="); o[k]=int(v)
        self.o=o; self.bs=l.block_size
        self.n=l.num_blocks or min(1<<16,l.kv_bytes//(SLOT*l.block_size))
        self.pool=bytearray(SLOT*self.bs*self.n)
        self.emit(base.Estimate(l.model,0,SLOT*self.bs,self.n,1<<30))
        return base.Loaded(l.model,"null",1,o["vocab"],l.max_ctx or o["max_ctx"],0,(o["eos"],) if o["eos"]>=0 else (),(base.KvGroup(1,"full",0,1,SLOT,l.dtype),),self.bs,SLOT*self.bs,self.n,l.dtype,4096,256,32768,0)
    def unload(self,u): pass
    def stats(self): return base.StatsReply(0,len(self.pool),0,0,0,0)
    def close(self): pass
    def submit(self,s):
        t0=time.monotonic_ns()//1000; results=[]
        try:
            for op in s.ops:
                r=self.run(op)
                if r is not None: results.append(r)
        except DriverFault as f:
            self.emit(base.Fault(s.epoch,s.queue,s.value,f.kind,f.message,f.items)); return
        self.emit(base.Complete(s.epoch,s.queue,s.value,t0,time.monotonic_ns()//1000,tuple(results)))
    def block(self,b): return slice(b*self.bs*SLOT,(b+1)*self.bs*SLOT)
    def run(self,op):
        if isinstance(op,base.Copy):
            data=[bytes(self.pool[self.block(b)]) for b in read_ints(op.src)]
            for b,d in zip(read_ints(op.dst),data): self.pool[self.block(b)]=d
        elif isinstance(op,base.Scrub):
            for b in read_ints(op.blocks): self.pool[self.block(b)]=bytes(self.bs*SLOT)
        elif isinstance(op,base.Checksum):
            return tuple(hashlib.blake2b(self.pool[self.block(b)],digest_size=16).hexdigest() for b in read_ints(op.blocks))
        elif isinstance(op,base.Execute): self.execute(op)
        elif isinstance(op,base.Sample): return self.sample(op)
    def execute(self,e):
        tok,pos,qo,kvl=map(read_ints,(e.tokens,e.positions,e.qo_indptr,e.kv_len)); t=e.tables[0]
        ip,bl,ws=map(read_ints,(t.indptr,t.blocks,t.write_slot)); pool=self.pool; bs=self.bs
        if self.o["step_us"]: time.sleep(self.o["step_us"]/1e6)
        self.rows=[]; want=set(read_ints(e.logit_rows)); zero=bytes(SLOT)
        seen=set()
        for w in ws:
            if w>=bs and w in seen: raise DriverFault(FaultKind.PLAN_INVALID,"dup write")
            seen.add(w)
        def slot(blocks,p):
            a=(blocks[p//bs]*bs+p%bs)*SLOT
            return a
        for s in range(len(kvl)):
            blocks=bl[ip[s]:ip[s+1]]
            if len(blocks)*bs<kvl[s]: raise DriverFault(FaultKind.PLAN_INVALID,"short table")
            for i in range(qo[s],qo[s+1]):
                p=pos[i]; a=slot(blocks,p)
                if ws[i]>=bs:
                    if ws[i]*SLOT!=a: raise DriverFault(FaultKind.PLAN_INVALID,"write slot")
                    prev=zero
                    if p:
                        b=slot(blocks,p-1); prev=bytes(pool[b:b+SLOT])
                        if prev==zero: raise DriverFault(FaultKind.PLAN_INVALID,f"read of unwritten slot block {blocks[(p-1)//bs]} offset {(p-1)%bs}")
                    pool[a:a+SLOT]=slot_digest(tok[i],p,prev)
                if i in want:
                    hist=b"".join(bytes(pool[self.block(b)]) for b in blocks)[:(p+1)*SLOT]
                    for j in range(0,len(hist),SLOT):
                        if hist[j:j+SLOT]==zero: raise DriverFault(FaultKind.PLAN_INVALID,f"read of unwritten slot {j} of {len(hist)} kvl {kvl[s]} blocks {blocks}")
                    self.rows.append(hist)
    def sample(self,s):
        temp=base.read_reals(s.temperature); seed=base.read_seeds(s.seed); pos=read_ints(s.position); nl=read_ints(s.num_logprobs)
        ids=[draw(h,temp[r],seed[r],pos[r],self.o["vocab"]) for r,h in enumerate(self.rows)]
        ti=[];tl=[];lp=[]
        for r,i in enumerate(ids):
            lp.append(-1.0 if nl[r]>=0 else 0.0)
            for k in range(max(0,nl[r])): ti.append((i+k)%self.o["vocab"]); tl.append(-1.0-k)
        return base.Sampled(base.ints(ids),bytes(len(ids)),base.reals(lp),base.ints(ti),base.reals(tl))

def open_driver(emit,bulk): return NullDriver(emit,bulk)
