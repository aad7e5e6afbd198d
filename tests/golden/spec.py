"""Executable specification of VITA-Audio generation (greedy), as docs/model.md describes it.

Every burst runs ALL K MCTP modules over the same rows [valid, m) and commits the first n tokens.
Usage: python spec.py language_model/mctp10 language_model/mctp4   (needs torch and safetensors)
"""
import torch, json, sys
from safetensors.torch import load_file
def rms(x,w,eps=1e-6): return x*torch.rsqrt(x.pow(2).mean(-1,keepdim=True)+eps)*w
def rope(x,pos,theta):
    d=x.shape[-1]; inv=1/theta**(torch.arange(0,d,2).float()/d); a=pos[:,None]*inv; c=torch.cat([a,a],-1).cos(); s=torch.cat([a,a],-1).sin()
    h=torch.cat([-x[...,d//2:],x[...,:d//2]],-1); return x*c+h*s
def attn_layer(sd,i,x,c,cache,start):
    p=f'model.layers.{i}.'; H,KV=c['num_attention_heads'],c['num_key_value_heads']; L=x.shape[0]; hd=c['hidden_size']//H
    h=rms(x,sd[p+'input_layernorm.weight'])
    def lin(n,hn): return (h@sd[p+f'self_attn.{n}_proj.weight'].T+sd[p+f'self_attn.{n}_proj.bias']).view(L,hn,hd).transpose(0,1)
    pos=torch.arange(start,start+L).float()
    q,k,v=rope(lin('q',H),pos,c['rope_theta']),rope(lin('k',KV),pos,c['rope_theta']),lin('v',KV)
    pk,pv=cache.get(i,(k[:,:0],v[:,:0])); k=torch.cat([pk[:,:start],k],1); v=torch.cat([pv[:,:start],v],1); cache[i]=(k,v)   # overwrite from `start`
    kk=k.repeat_interleave(H//KV,0); vv=v.repeat_interleave(H//KV,0); T=kk.shape[1]
    w=(q@kk.transpose(1,2)*hd**-.5).masked_fill(~torch.ones(L,T,dtype=torch.bool).tril(T-L),float('-inf')).softmax(-1)
    x=x+(w@vv).transpose(0,1).reshape(L,-1)@sd[p+'self_attn.o_proj.weight'].T
    h=rms(x,sd[p+'post_attention_layernorm.weight'])
    return x+(torch.nn.functional.silu(h@sd[p+'mlp.gate_proj.weight'].T)*(h@sd[p+'mlp.up_proj.weight'].T))@sd[p+'mlp.down_proj.weight'].T
def generate(c,sd,prompt,pattern,n_new):
    K=c['num_nextn_predict_layers']; NL=c['num_hidden_layers']-K; E=sd['model.embed_tokens.weight']; W=sd['lm_head.weight']; nrm=sd['model.norm.weight']
    t=list(prompt); cache={}; H=torch.zeros(0,c['hidden_size']); m=0; valid=0; calls=[]
    mains,ms=pattern[::2],pattern[1::2]; i=0
    while len(t)-len(prompt)<n_new:
        for _ in range(mains[min(i,len(mains)-1)]):
            x=E[t[m:]]
            for l in range(NL): x=attn_layer(sd,l,x,c,cache,m)
            H=torch.cat([H,rms(x,nrm)]); m=len(t); t.append(int((H[-1]@W.T).argmax()))
            if len(t)-len(prompt)>=n_new: break
        n=ms[min(i,len(ms)-1)]; i+=1
        if n and len(t)-len(prompt)<n_new:
            h=H[valid:m]; ids=t[valid:]; calls.append(m-valid); new=[]
            for k in range(K):
                e=E[(ids+new)[k+1:k+1+h.shape[0]]]
                x=torch.cat([rms(e,sd[f'mtp_embed_norms.{k}.weight']),rms(h,sd[f'mtp_hidden_norms.{k}.weight'])],-1)@sd[f'mtp_projs.{k}.weight'].T
                h=rms(attn_layer(sd,NL+k,x,c,cache,valid),nrm); new.append(int((h[-1]@W.T).argmax()))
            t+=new[:n]; valid=max(0,min(m,len(t)-1-K))
    return t[len(prompt):len(prompt)+n_new],calls
if __name__=='__main__':
    for d in sys.argv[1:]:
        c=json.load(open(d+'/config.json')); sd=load_file(d+'/model.safetensors'); ok=bad=0
        for case in json.load(open(d+'/greedy_tokens.json')):
            if case['repetition_penalty']!=1.0: continue
            with torch.no_grad(): g,calls=generate(c,sd,case['prompt'],case['pattern'],len(case['tokens']))
            if g==case['tokens']: ok+=1
            else: bad+=1; print('DIFF',len(case['prompt']),case['pattern'],next(i for i in range(96) if g[i]!=case['tokens'][i]),calls[:5])
        print(d,ok,'equal',bad,'different; rows per burst e.g.',calls[:6])
